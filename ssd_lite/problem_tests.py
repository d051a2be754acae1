"""The tests of a problem, one dataclass a kind, and their form in a problem line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = Any


@dataclass(frozen=True)
class FunctionalTest:
    """Call `entry_point(*args)` and compare with `expected`; one `[args, expected]` pair a case.

    `tolerance` is an absolute and relative bound on floats, None for exact equality. With `expected_from="golden"` the
    expected values are those of the golden solution, run once in the sandbox, and those in `cases` are not read.
    """

    entry_point: str
    cases: tuple[tuple[list[Json], Json], ...]
    tolerance: float | None = None
    expected_from: Literal["cases", "golden"] = "cases"
    kind: Literal["functional"] = "functional"


@dataclass(frozen=True)
class StdinTest:
    """Run the program as a script; one `(input, output)` pair a case, compared token by token."""

    cases: tuple[tuple[str, str], ...]
    kind: Literal["stdin"] = "stdin"


@dataclass(frozen=True)
class ScriptTest:
    """Python test code (asserts) that runs after `setup` and the program, HumanEval's and MBPP's form.

    `entry_point` is the function the test calls, where it is known.
    """

    code: str
    setup: str = ""
    entry_point: str | None = None
    kind: Literal["script"] = "script"


@dataclass(frozen=True)
class AnswerTest:
    """No program: the completion must end up with `answer`, a number or a short text; see `grading.answers`."""

    answer: str
    kind: Literal["answer"] = "answer"


Test = FunctionalTest | StdinTest | ScriptTest | AnswerTest


def read_test(value: Mapping[str, Json]) -> Test:
    """Read the `tests` object of a problem line. Raises ValueError with what is wrong in it."""
    kind = value.get("kind")
    match kind:
        case "functional":
            return _functional(value)
        case "stdin":
            return _stdin(value)
        case "script":
            _only(value, {"kind", "setup", "code", "entry_point"})
            if not isinstance(value.get("code"), str) or not value["code"].strip():
                raise ValueError("script tests need a non-empty string `code`")
            return ScriptTest(str(value["code"]), str(value.get("setup") or ""), value.get("entry_point"))
        case "answer":
            _only(value, {"kind", "answer"})
            if not isinstance(value.get("answer"), str) or not value["answer"].strip():
                raise ValueError("answer tests need a non-empty string `answer`")
            return AnswerTest(value["answer"])
        case _:
            raise ValueError(f"tests.kind must be functional, stdin, script or answer, got {kind!r}")


def write_test(test: Test) -> dict[str, Json]:
    """The `tests` object of a problem line, read back by `read_test`."""
    match test:
        case FunctionalTest():
            body: dict[str, Json] = {"entry_point": test.entry_point, "cases": [[a, e] for a, e in test.cases]}
            if test.tolerance is not None:
                body["tolerance"] = test.tolerance
            if test.expected_from != "cases":
                body["expected_from"] = test.expected_from
        case StdinTest():
            body = {"cases": [{"input": i, "output": o} for i, o in test.cases]}
        case ScriptTest():
            body = {"setup": test.setup, "code": test.code, "entry_point": test.entry_point}
        case AnswerTest():
            body = {"answer": test.answer}
    return {"kind": test.kind, **body}


def _only(value: Mapping[str, Json], allowed: set[str]) -> None:
    unknown = sorted(set(value) - allowed)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in tests (known: {', '.join(sorted(allowed))})")


def _functional(value: Mapping[str, Json]) -> FunctionalTest:
    _only(value, {"kind", "entry_point", "cases", "tolerance", "expected_from"})
    entry_point, cases = value.get("entry_point"), value.get("cases")
    if not isinstance(entry_point, str) or not entry_point:
        raise ValueError("functional tests need a string `entry_point`")
    if not isinstance(cases, list) or not cases:
        raise ValueError("functional tests need a non-empty list `cases`")
    pairs = []
    for case in cases:
        if not isinstance(case, list | tuple) or len(case) != 2 or not isinstance(case[0], list):
            raise ValueError("a functional case is [args, expected] with args a list")
        pairs.append((case[0], case[1]))
    tolerance = value.get("tolerance")
    if tolerance is not None and (not isinstance(tolerance, int | float) or tolerance < 0):
        raise ValueError("tolerance must be a number of at least 0")
    source = value.get("expected_from", "cases")
    if source not in ("cases", "golden"):
        raise ValueError('expected_from must be "cases" or "golden"')
    return FunctionalTest(entry_point, tuple(pairs), tolerance, source)


def _stdin(value: Mapping[str, Json]) -> StdinTest:
    _only(value, {"kind", "cases"})
    cases = value.get("cases")
    if not isinstance(cases, list) or not cases:
        raise ValueError("stdin tests need a non-empty list `cases`")
    for case in cases:
        if not isinstance(case, dict) or not all(isinstance(case.get(k), str) for k in ("input", "output")):
            raise ValueError('a stdin case is {"input": text, "output": text}')
    return StdinTest(tuple((case["input"], case["output"]) for case in cases))
