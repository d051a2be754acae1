"""The records that pass between stages: frozen dataclasses, one JSON object a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Any
Message = dict[str, str]
FinishReason = Literal["stop", "length"]
Verdict = Literal["pass", "wrong_answer", "error", "timeout", "memory", "output_limit", "violation", "no_code"]
Difficulty = Literal["easy", "medium", "hard"]


@dataclass(frozen=True)
class Limits:
    """What one program may use. CPU and wall time in seconds per test, memory and output in MiB."""

    cpu_s: float = 2.0
    wall_s: float = 6.0
    memory_mib: int = 1024
    output_mib: int = 8

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"limits.{item.name} must be a positive number, got {value!r}")


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


Test = FunctionalTest | StdinTest | ScriptTest


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
        case _:
            raise ValueError(f"tests.kind must be functional, stdin or script, got {kind!r}")


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


@dataclass(frozen=True)
class Problem:
    """One problem: chat messages, and for evaluation its tests.

    `golden` is a program that must pass `test`; None where the source has none. `prelude` is code that stands before
    every program of this problem (imports a platform provides). `extra` keeps what the source says beside.
    """

    id: str
    messages: tuple[Message, ...]
    test: Test | None = None
    difficulty: Difficulty | None = None
    golden: str | None = None
    prelude: str = ""
    limits: Limits | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)

    def statement(self) -> str:
        """The text that identifies the problem: its messages, white space folded. For de-duplication."""
        return " ".join(" ".join(message["content"].split()) for message in self.messages)


@dataclass(frozen=True)
class Prompt:
    """A rendered problem: the text a chat template gave and its token ids."""

    problem_id: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class SamplingSettings:
    """The whole sampling law and its budget; `top_k` 0, `top_p` 1.0 and `min_p` 0.0 mean off. No field has a default.

    Law: temperature, then the top_k most likely tokens, then the smallest nucleus of mass top_p inside them, then of
    those the tokens at least `min_p` times as likely as the likeliest, renormalised.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Span:
    """A piece of a file: `length` bytes from `offset`, with their CRC-32."""

    offset: int
    length: int
    crc: int


@dataclass(frozen=True)
class Sample:
    """One completion as sampled. `completion_ids` ends with the end token exactly where `finish_reason` is "stop".

    `completion` is the text without control tokens; `entropy_nats` the mean entropy of the laws its tokens were drawn
    from, `survivors` the mean number of tokens those laws left, None where nobody counted; `seed` the derived seed of
    this `(problem_id, index)`; `settings` the resolved settings the engine used; `targets` where the laws themselves
    are kept, None where they are not.
    """

    problem_id: str
    index: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    completion: str
    finish_reason: FinishReason
    entropy_nats: float
    seed: int
    settings: SamplingSettings
    engine: str
    model_hash: str
    survivors: float | None = None
    targets: Span | None = None

    @property
    def key(self) -> tuple[str, int]:
        return (self.problem_id, self.index)


@dataclass(frozen=True)
class Grade:
    """The verdict on one sample. `detail` is one short line for people; `cpu_s` the CPU seconds of the program."""

    problem_id: str
    index: int
    verdict: Verdict
    detail: str = ""
    cpu_s: float = 0.0

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"


def to_json(record: Sample | Grade) -> dict[str, Json]:
    """A record as a JSON object."""
    return dataclasses.asdict(record)


def sample_from_json(value: Mapping[str, Json]) -> Sample:
    """Read a Sample back from its JSON object."""
    optional = {"survivors": None, "targets": None}
    body = {item.name: {**optional, **value}[item.name] for item in dataclasses.fields(Sample)}
    body["prompt_ids"], body["completion_ids"] = tuple(body["prompt_ids"]), tuple(body["completion_ids"])
    body["settings"] = SamplingSettings(**body["settings"])
    body["targets"] = Span(**body["targets"]) if body["targets"] is not None else None
    return Sample(**body)


def grade_from_json(value: Mapping[str, Json]) -> Grade:
    """Read a Grade back from its JSON object."""
    return Grade(**{item.name: value[item.name] for item in dataclasses.fields(Grade)})
