"""`ssd-lite grade`: completions from anywhere, graded against a problem set."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.grading.extract import Block, extract_program
from ssd_lite.grading.interchange import Interchange
from ssd_lite.grading.pass_at_k import pass_at_k
from ssd_lite.grading.steps import Submission
from ssd_lite.grading.submissions import Grading, open_grader, submission
from ssd_lite.grading.tiers import Choice
from ssd_lite.records import Grade, Problem, to_json


@dataclass(frozen=True)
class _Read:
    """The submissions of a file and how their fences ended."""

    submissions: list[Submission]
    fences: Counter[str]


def grade_file(
    samples: Path,
    problems: Sequence[Problem],
    *,
    sandbox: Choice = "auto",
    out: Path | None = None,
    block: Block = "last",
    workers: int | None = None,
    interchange: Interchange | None = None,
) -> dict[str, Any]:
    """Grade a file of samples and return a summary: counts of verdicts, pass@k, isolation, golden check.

    SAMPLES lines are `{"problem_id", "index", "completion"}` or `{"problem_id", "index", "program"}`. With `out`,
    grades are written there, one `{"problem_id", "index", "verdict", "detail", "cpu_s"}` a line, in the order of the
    samples; the file appears whole, at the end. `interchange` names files that other harnesses read, with the
    same programs. Raises UserError for a file or line that cannot be used, before anything is graded for a file that
    cannot be written or would replace another of these, and for a golden solution that fails.
    """
    refuse_outputs({"SAMPLES": samples}, out, interchange or Interchange())
    by_id = {problem.id: problem for problem in problems}
    read = _read_samples(samples, by_id, block)
    used = {submission.problem.id for submission in read.submissions}
    wanted = [problem for problem in problems if problem.id in used]
    with open_grader(sandbox, wanted, workers) as grader:
        golden = check_golden(grader, wanted)
        grades = {(grade.problem_id, grade.index): grade for grade in grader.grade(read.submissions)}
        described = grader.describe()
    ordered = [grades[submission.problem.id, submission.index] for submission in read.submissions]
    if out is not None:
        _write_grades(out, ordered)
    if interchange is not None:
        interchange.write(read.submissions)
    return {**summary(ordered), "fences": dict(read.fences), "golden": golden, "grading": described}


def check_golden(grader: Grading, problems: Sequence[Problem]) -> str:
    """Grade the golden solutions first. Returns a line for the report; raises UserError where one fails."""
    having = [problem for problem in problems if problem.golden is not None]
    if not having:
        return "this set has no golden solutions: its tests are taken on trust"
    failed = grader.verify_golden(having)
    if failed:
        first = failed[0]
        what = (
            f"{len(failed)} of {len(having)} golden solutions fail their own tests ({first.verdict}: {first.detail})."
        )
        raise UserError(what, where=first.problem_id, next_step="Correct or remove these problems, then grade again.")
    return f"{len(having)} of {len(problems)} problems have a golden solution, and each passes"


def summary(grades: Sequence[Grade]) -> dict[str, Any]:
    """Counts and pass@k of grades; k is 1, 5 or 10, where every problem has at least k samples."""
    passes: dict[str, list[bool]] = {}
    for grade in grades:
        passes.setdefault(grade.problem_id, []).append(grade.passed)
    fewest = min(map(len, passes.values()), default=0)
    rates = {
        f"pass@{k}": sum(pass_at_k(len(row), sum(row), k) for row in passes.values()) / len(passes)
        for k in (1, 5, 10)
        if k <= fewest
    }
    verdicts = dict(Counter(grade.verdict for grade in grades).most_common())
    return {"problems": len(passes), "samples": len(grades), "verdicts": verdicts, **rates}


def refuse_outputs(inputs: Mapping[str, Path], out: Path | None, interchange: Interchange) -> None:
    """Raise UserError for an output that is an input, or another output, or cannot be written: grading takes long."""
    taken = dict(inputs)
    written = {"--out": out, "--evalplus": interchange.evalplus, "--livecodebench": interchange.livecodebench}
    for option, path in written.items():
        if path is None:
            continue
        parts = [path, _part(path)] if option == "--out" else [path]
        for name, other in taken.items():
            if any(_same(part, other) for part in parts):
                raise UserError(
                    f"{path} would replace the file of {name}.", where=option, next_step="Name another file."
                )
        taken |= {option: path}
        try:
            _refuse_unwritable(path)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}.",
                where=option,
                next_step="Name a file in a folder that is there and yours.",
            ) from None


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.is_file() and other.is_file() and one.samefile(other))


def _refuse_unwritable(path: Path) -> None:
    """Raise OSError where a file cannot be written or made; an unnamed file shows it for the folder, root or not."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not path.exists() or path.is_file():
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _part(path: Path) -> Path:
    """Where grades are written before they take their name."""
    return path.with_name(path.name + ".part")


def _read_samples(path: Path, problems: Mapping[str, Problem], block: Block) -> _Read:
    read, seen = _Read([], Counter()), dict[tuple[str, int], int]()
    for number, line in _lines(path):
        where = f"{path}:{number}"
        value = _object(line, where)
        name, index = value.get("problem_id"), value.get("index", 0)
        if not isinstance(name, str) or isinstance(index, bool) or not isinstance(index, int):
            raise UserError('a sample needs a text "problem_id" and a whole number "index".', where=where)
        if name not in problems:
            raise UserError(f"the problem set has no problem {name!r}.", where=where, next_step="Check --problems.")
        if (name, index) in seen:
            raise UserError(f"the same problem_id and index stand in line {seen[name, index]}.", where=where)
        seen[name, index] = number
        read.submissions.append(_submission(value, problems[name], index, block, where, read.fences))
    if not read.submissions:
        raise UserError("there are no samples.", where=str(path))
    return read


def _submission(
    value: dict[str, Any], problem: Problem, index: int, block: Block, where: str, fences: Counter[str]
) -> Submission:
    keys = [key for key in ("completion", "program") if key in value]
    if len(keys) != 1 or not isinstance(value[keys[0]], str):
        found = ", ".join(sorted(value))
        raise UserError(f'a sample needs either "completion" or "program", a text; it has: {found}.', where=where)
    if keys[0] == "program":
        return Submission(problem, index, str(value["program"]))
    fences[extract_program(value["completion"], block=block).fence] += 1
    return submission(problem, index, value["completion"], block=block)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}.", where=str(path), next_step="Check the path.") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a line of JSON: {error}.", where=where) from None
    if not isinstance(value, dict):
        raise UserError("a line holds one JSON object.", where=where)
    return value


def _write_grades(path: Path, grades: Sequence[Grade]) -> None:
    text = "".join(json.dumps(to_json(grade)) + "\n" for grade in grades)
    part = _part(path)
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}.", where=str(path), next_step="Check the path.") from None
