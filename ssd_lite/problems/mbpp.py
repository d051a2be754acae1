"""MBPP, in its original rows: a local JSON Lines or parquet file, or the Hub dataset."""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import ScriptTest
from ssd_lite.problems.parquet import parquet_files, read_rows
from ssd_lite.problems.problem_set import existing_path
from ssd_lite.problems.strict_json import read_objects
from ssd_lite.records import Problem

HUB_NAME = "google-research-datasets/mbpp"
HUB_FOLDER = "full"
MbppSplit = Literal["train", "test", "validation", "prompt", "all"]
# Inclusive task_id ranges, from the README of google-research/mbpp.
TASK_IDS: dict[str, range] = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
    "all": range(1, 975),
}
REQUEST = (
    "{text}\n\nYour Python code must pass these tests:\n\n{tests}\n\nAnswer with the whole code in one ```python block."
)


def load_mbpp(paths: Iterable[Path], split: MbppSplit) -> list[Problem]:
    """The problems of a split, by `task_id`, from files of original rows (`.jsonl` or `.parquet`).

    The prompt is the task and its asserts, as in the paper (arXiv 2108.07732); `golden` is the row's `code`.
    UserError where a row has no task or tests, or no row belongs to the split.
    """
    if split not in get_args(MbppSplit):
        what = f"unknown MBPP split {split!r}."
        raise UserError(what, where="problems", next_step=f"Use one of {', '.join(get_args(MbppSplit))}.")
    files = [file for path in paths for file in mbpp_files(path)]
    problems = [_problem(row, where) for file in files for where, row in _rows(file)]
    wanted = [problem for problem in problems if problem.extra["task_id"] in TASK_IDS[split]]
    if not wanted:
        what = f"0 of {len(problems)} problems are in the split {split}."
        raise UserError(what, where=", ".join(map(str, files)), next_step="Give the whole data set.")
    return sorted(wanted, key=lambda problem: int(problem.extra["task_id"]))


def mbpp_files(path: Path) -> list[Path]:
    """The data files a path names: itself, or the parquet files of a folder."""
    found = existing_path(path)
    return [found] if found.is_file() and found.suffix != ".parquet" else parquet_files(found)


def _rows(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    if file.suffix != ".parquet":
        yield from ((f"{file}:{number}", row) for number, row in read_objects(file))
        return
    columns = ("task_id", "text", "prompt", "code", "test_list", "test_setup_code", "test_imports")
    for number, row in enumerate(read_rows(file, columns, needed=("task_id", "code", "test_list")), start=1):
        yield f"{file}: row {number}", row


def _problem(row: dict[str, Any], where: str) -> Problem:
    # The sanitized half of the data names the task `prompt` and its setup `test_imports`.
    text = row.get("text") or row.get("prompt")
    task_id, code, asserts = row.get("task_id"), row.get("code"), row.get("test_list")
    if not (isinstance(task_id, int) and isinstance(text, str) and isinstance(code, str) and _texts(asserts)):
        what = f"no MBPP row (keys found: {', '.join(row)})."
        raise UserError(what, where=where, next_step="MBPP rows have task_id, text, code and test_list.")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    tests = "\n".join(str(line).strip() for line in asserts)
    golden = _unix(code)
    return Problem(
        id=f"mbpp/{task_id}",
        messages=({"role": "user", "content": REQUEST.format(text=text.strip(), tests=tests)},),
        test=ScriptTest(code=tests + "\n", setup=_unix(setup), entry_point=entry_point(tests, golden)),
        golden=golden,
        extra={"task_id": task_id, "statement": text, "source": "mbpp"},
    )


def entry_point(tests: str, golden: str) -> str | None:
    """The function the asserts call: one that `golden` defines, else the first call that is no builtin."""
    called, defined = _called(tests), _defined(golden)
    first_own = next((name for name in called if not hasattr(builtins, name)), None)
    return next((name for name in called if name in defined), first_own)


def _called(tests: str) -> list[str]:
    calls = (node.func for node in ast.walk(_parsed(tests)) if isinstance(node, ast.Call))
    return [function.id for function in calls if isinstance(function, ast.Name)]


def _defined(program: str) -> set[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in _parsed(program).body if isinstance(node, kinds)}


def _parsed(program: str) -> ast.Module:
    """The syntax tree, empty where there is none; the data's invalid escapes are not this program's to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(program)
        except SyntaxError:
            return ast.Module(body=[], type_ignores=[])


def _texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
