"""HumanEval+ and MBPP+, read from EvalPlus' JSON Lines (`.jsonl` or `.jsonl.gz`).

A row has inputs and no expected values: those are the golden solution's, run in the sandbox before anything is graded.
MBPP+ stores tuples, sets and complex numbers as lists and texts; which task needs what is EvalPlus' convention (its
package, `data/mbpp.py`), as are the tasks with a looser comparison (`eval/_special_oracle.py`).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import FunctionalTest, ScriptTest, Test
from ssd_lite.records import Limits, Problem

KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input")
LIMITS = Limits(cpu_s=4, wall_s=14, memory_mib=4096, output_mib=8)
FLOAT_TOLERANCE = 1e-6
ROOT_TOLERANCE = 1e-4
_HUMANEVAL_REQUEST = (
    "Complete this Python function.\n\n```python\n{prompt}\n```\n\n"
    "Answer with the whole function in one ```python block."
)
_MBPP_REQUEST = "{prompt}\n\nAnswer with the whole code in one ```python block."
_SET_TASKS = (
    "similar_elements find_char_long common_in_nested_lists extract_singly larg_nnum intersection_array "
    "find_dissimilar Diff"
)
_AS_SETS = frozenset(_SET_TASKS.split())
_SOME_ANSWER = frozenset({"check_str", "text_match_three", "text_starta_endb"})
_ANY_ANSWER = frozenset({"are_equivalent"})


def _tuples(values: list[Any]) -> list[Any]:
    return [tuple(value) for value in values]


def _deep(value: Any) -> Any:
    return tuple(map(_deep, value)) if isinstance(value, list) else value


def _shallow(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Reader = Callable[[list[Any]], Any]
_READERS: list[tuple[str, Reader]] = [
    ("2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809", _tuples),
    ("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", lambda args: [_tuples(arg) for arg in args]),
    ("75 413 444 753", lambda args: [_tuples(args[0]), args[1]]),
    ("106 750", lambda args: [args[0], tuple(args[1])]),
    ("115", lambda args: [[set(item) if isinstance(item, list) and item else {} for item in args[0]]]),
    ("124", lambda args: [float(args[0]), complex(args[1])]),
    ("250 405 446 617 720 763 808", lambda args: [tuple(args[0]), args[1]]),
    ("259 401 445", lambda args: [tuple(_tuples(arg)) for arg in args]),
    ("278", lambda args: [tuple(_shallow(item) for item in args[0])]),
    ("307", lambda args: [tuple(args[0]), args[1], args[2]]),
    ("722", lambda args: [{key: tuple(value) for key, value in args[0].items()}, *args[1:]]),
    ("252", lambda args: [complex(args[0])]),
    ("580 615 791", lambda args: [_deep(arg) for arg in args]),
]
READERS = {int(task): reader for tasks, reader in _READERS for task in tasks.split()}

_TEST_HEAD = """
import copy
import math

inf, nan = math.inf, math.nan

def check(candidate):
    for arguments, expected in zip(INPUTS, EXPECTED):
        answer = candidate(*copy.deepcopy(arguments))
        assert {condition}
"""
_CONDITIONS = {
    "as sets": "set(answer) == set(expected)",
    "some answer": "answer == expected if isinstance(answer, bool) else bool(expected) == (answer is not None)",
    "any answer": "True",
    "sum_div": "answer in (expected, 0)",
    "surface_Area": "answer == expected or abs(answer - round(arguments[0] ** 2 + 2 * arguments[0]"
    " * math.hypot(arguments[0] / 2, arguments[1]))) <= 1e-6",
    "digit_distance_nums": "answer == expected or answer == sum(abs(int(a) - int(b)) for a, b in"
    " zip(*(str(number).zfill(40) for number in arguments)))",
    "root": "abs(sum(c * math.pow(answer, i) for i, c in enumerate(arguments[0]))) <= {tolerance!r}",
}


def load(path: Path) -> list[Problem]:
    """The problems of a HumanEval+ or MBPP+ file. Raises UserError for a line that is not one."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot be read ({error}).", where=str(path), next_step="Check the path.") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError("holds no problem.", where=str(path), next_step="Give an EvalPlus JSON Lines file.")
    return [_problem(line, f"{path}:{number}") for number, line in lines]


def _problem(line: str, where: str) -> Problem:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a line of JSON: {error}.", where=where) from None
    missing = [key for key in KEYS if not isinstance(row, dict) or key not in row]
    if missing:
        raise UserError(f"no `{missing[0]}`: this is no EvalPlus row.", where=where)
    prompt, name = str(row["prompt"]), str(row["entry_point"])
    mbpp = str(row["task_id"]).lower().startswith("mbpp")
    golden = row["canonical_solution"] if mbpp else prompt + row["canonical_solution"]
    try:
        inputs = [*_inputs(row, "base_input", mbpp), *_inputs(row, "plus_input", mbpp)]
        test = _test(name, inputs, float(row.get("atol") or 0), mbpp)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"an input cannot be read: {error}.", where=where) from None
    request = (_MBPP_REQUEST if mbpp else _HUMANEVAL_REQUEST).format(prompt=prompt.strip())
    return Problem(
        id=str(row["task_id"]),
        messages=({"role": "user", "content": request},),
        test=test,
        golden=golden,
        prelude="" if mbpp else prompt[: max(prompt.rfind(f"def {name}("), 0)].strip(),
        limits=LIMITS,
        extra={"prompt": prompt, "statement": prompt, "source": "evalplus"},
    )


def _inputs(row: dict[str, Any], key: str, mbpp: bool) -> list[list[Any]]:
    rows = row[key] if isinstance(row[key], list) else []
    reader = READERS.get(int(str(row["task_id"]).rsplit("/", 1)[-1])) if mbpp else None
    return [list(reader(arguments)) if reader else list(arguments) for arguments in rows]


def _test(name: str, inputs: list[list[Any]], tolerance: float, mbpp: bool) -> Test:
    kind = _looser(name, mbpp)
    if kind is None:
        return FunctionalTest(
            name, tuple((arguments, None) for arguments in inputs), tolerance or FLOAT_TOLERANCE, expected_from="golden"
        )
    condition = _CONDITIONS[kind].format(tolerance=tolerance or ROOT_TOLERANCE)
    code = _TEST_HEAD.format(condition=condition)
    expected = f"[{name}(*copy.deepcopy(arguments)) for arguments in INPUTS]"
    code += f"\nINPUTS = {inputs!r}\nEXPECTED = {expected}\ncheck({name})\n"
    return ScriptTest(code, entry_point=name)


def _looser(name: str, mbpp: bool) -> str | None:
    if not mbpp:
        return "root" if name == "find_zero" else None
    if name in _AS_SETS:
        return "as sets"
    if name in _SOME_ANSWER:
        return "some answer"
    if name in _ANY_ANSWER:
        return "any answer"
    return name if name in _CONDITIONS else None
