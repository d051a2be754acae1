"""LiveCodeBench, read from its JSON Lines files: releases, date windows, platforms, hidden tests unpickled safely.

File names and releases: `test.jsonl` is release_v1, `testN.jsonl` what release_vN added; `release_vN` is all files up
to N, `vN` that file alone. A row's private tests are JSON text, or base64 of zlib of a pickle that holds JSON text.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import FunctionalTest, StdinTest
from ssd_lite.problems.livecodebench_name import FORM, RELEASE, Asked, window_text
from ssd_lite.records import Limits, Problem

LIMITS = Limits(cpu_s=6, wall_s=20, memory_mib=2048, output_mib=8)
KEYS = ("question_content", "question_id", "contest_date", "public_test_cases", "private_test_cases")
DIFFICULTIES = ("easy", "medium", "hard")
MAX_TEST_BYTES = 1 << 30
_FILE = re.compile(r"test(\d*)\.jsonl")
_FUNCTION = (
    "{question}\n\nComplete this code; keep its names and parameters.\n\n```python\n{starter}\n```\n\n"
    "Answer with the whole program in one ```python block."
)
_SCRIPT = (
    "{question}\n\nWrite a Python program that reads from standard input and prints the answer to standard output.\n\n"
    "Answer with the whole program in one ```python block."
)


def load(
    path: Path,
    *,
    release: str | None = None,
    start: date | None = None,
    end: date | None = None,
    platforms: Sequence[str] | None = None,
    difficulties: Sequence[str] | None = None,
) -> list[Problem]:
    """The problems of a JSON Lines file, or of a folder of the release's files, in their order.

    `start` and `end` are inclusive contest dates. `release` chooses files of a folder: `release_v5`, or `v6` for one.
    Raises UserError for a missing file, an unknown release, one beside a single file, a line that cannot be read, and
    an empty selection.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    days: list[date] = []
    for file in release_files(path, release):
        for where, row in _rows(file):
            day = _day(row, where)
            days.append(day)
            if not _inside(day, start, end):
                continue
            if platforms and row.get("platform") not in platforms:
                continue
            if difficulties and row.get("difficulty") not in difficulties:
                continue
            problem = _problem(row, day, where)
            if problem.id in seen:
                raise UserError(f"question_id {problem.id!r} stands twice.", where=where)
            seen.add(problem.id)
            problems.append(problem)
    if not problems:
        raise _nothing_chosen(path, days, start, end)
    return problems


def contest_dates(problems: Sequence[Problem]) -> tuple[date, date]:
    """The first and the last contest date of problems that `load` returned, at least one."""
    days = [date.fromisoformat(problem.extra["contest_date"]) for problem in problems]
    return min(days), max(days)


def count(path: Path, asked: Asked) -> int:
    """How many problems `load` would return; tests are not unpacked. Raises UserError as `load` does."""
    days = [_day(row, where) for file in release_files(path, asked.release) for where, row in _rows(file)]
    found = sum(_inside(day, asked.start, asked.end) for day in days)
    if not found:
        raise _nothing_chosen(path, days, asked.start, asked.end)
    return found


def _inside(day: date, start: date | None, end: date | None) -> bool:
    return (start is None or day >= start) and (end is None or day <= end)


def _nothing_chosen(path: Path, days: Sequence[date], start: date | None, end: date | None) -> UserError:
    if not days:
        return UserError("holds no problem.", where=str(path), next_step="Download it again.")
    asked = f"the window {window_text(start, end)}" if start or end else "what was asked for"
    advice = f"The contest dates are {min(days)} to {max(days)}."
    return UserError(f"none of {len(days)} problems is in {asked}.", where=str(path), next_step=advice)


def release_files(path: Path, release: str | None) -> list[Path]:
    """The files a release is made of; all of them for None. `path` may be one file, without a release.

    Raises UserError for a path that is not there, an unknown release or one beside a file, and a file that is missing.
    """
    if not path.exists():
        raise UserError("there is no such file or folder.", where=str(path), next_step="Download it first.")
    if path.is_file():
        if release is not None:
            advice = f"Name the folder that holds test.jsonl, test2.jsonl, ..., or leave {release} out. Form: {FORM}."
            raise UserError(f"is one file; {release} chooses files of a folder.", where=str(path), next_step=advice)
        return [path]
    numbered = {int(match[1] or 1): file for file in path.glob("*.jsonl") if (match := _FILE.fullmatch(file.name))}
    wanted = sorted(numbered)
    if release is not None:
        match = RELEASE.fullmatch(release)
        if match is None:
            raise UserError(f"unknown release {release!r}.", where=str(path), next_step="Use release_v5 or v6, say.")
        last = int(match[2])
        wanted = list(range(1, last + 1)) if match[1] else [last]
    missing = [number for number in wanted if number not in numbered]
    if missing or not wanted:
        name = f"test{missing[0] if missing and missing[0] > 1 else ''}.jsonl"
        raise UserError(f"the folder lacks {name}.", where=str(path), next_step="Download the whole release.")
    return [numbered[number] for number in wanted]


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", _row(line, f"{file}:{number}")
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}.", where=str(file)) from None


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a line of JSON: {error}.", where=where) from None
    missing = [key for key in KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str)]
    if missing:
        raise UserError(f"no text `{missing[0]}`: this is no LiveCodeBench row.", where=where)
    return dict(row)


def _day(row: dict[str, Any], where: str) -> date:
    try:
        return datetime.fromisoformat(row["contest_date"]).date()
    except ValueError:
        raise UserError(f"contest_date {row['contest_date']!r} is no date.", where=where) from None


def _problem(row: dict[str, Any], day: date, where: str) -> Problem:
    cases = [*_cases(row["public_test_cases"], where), *_cases(private_text(row["private_test_cases"], where), where)]
    if not cases:
        raise UserError("the problem has no test cases.", where=where)
    starter, question = str(row.get("starter_code") or ""), row["question_content"].strip()
    functional = cases[0].get("testtype") == "functional"
    test = _functional(row, cases, where) if functional else StdinTest(tuple((c["input"], c["output"]) for c in cases))
    text = (_FUNCTION if starter.strip() else _SCRIPT).format(question=question, starter=starter.strip())
    level = row.get("difficulty")
    return Problem(
        id=row["question_id"],
        messages=({"role": "user", "content": text},),
        test=test,
        difficulty=level if level in DIFFICULTIES else None,
        limits=LIMITS,
        extra={"platform": row.get("platform"), "contest_date": day.isoformat(), "statement": question},
    )


def _functional(row: dict[str, Any], cases: list[dict[str, str]], where: str) -> FunctionalTest:
    try:
        name = json.loads(row.get("metadata") or "{}").get("func_name")
        pairs = [
            ([json.loads(line) for line in case["input"].split("\n")], json.loads(case["output"])) for case in cases
        ]
    except (ValueError, AttributeError) as error:
        raise UserError(f"a functional test cannot be read: {error}.", where=where) from None
    if not isinstance(name, str) or not name:
        raise UserError("a functional problem needs metadata with func_name.", where=where)
    return FunctionalTest(name, tuple(pairs))


def _cases(text: str, where: str) -> list[dict[str, str]]:
    try:
        cases = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"test cases are not JSON: {error}.", where=where) from None
    good = isinstance(cases, list) and all(
        isinstance(case, dict) and isinstance(case.get("input"), str) and isinstance(case.get("output"), str)
        for case in cases
    )
    if not good:
        raise UserError("a test case has no text `input` and `output`.", where=where)
    return list(cases)


def private_text(packed: str, where: str) -> str:
    """The JSON text of private tests, packed or not. Raises UserError for anything but a pickled text."""
    if packed.lstrip().startswith(("[", "{")):
        return packed
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(packed, validate=True), MAX_TEST_BYTES)
        if unpacker.unconsumed_tail:
            raise UserError(f"the private tests are larger than {MAX_TEST_BYTES >> 20} MiB.", where=where)
        value = _TextUnpickler(io.BytesIO(raw)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"the private tests cannot be unpacked: {error}.", where=where) from None
    if not isinstance(value, str):
        raise UserError(f"the private tests hold a {type(value).__name__}, not a text.", where=where)
    return value


class _TextUnpickler(pickle.Unpickler):
    """Admits no class and no function: of a pickle only built-in data without code is left."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an outside object")

    def get_extension(self, code: int) -> Callable[..., Any]:
        raise pickle.UnpicklingError(f"it asks for extension {code}")
