"""The records that pass between stages: frozen dataclasses, one JSON object a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ssd_lite.problem_tests import Test

Json = Any
Message = dict[str, str]
FinishReason = Literal["stop", "length"]
Verdict = Literal[
    "pass", "wrong_answer", "error", "timeout", "memory", "output_limit", "violation", "no_code", "no_answer"
]
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
    from, `survivors` the mean number of tokens those laws left, both None where nobody counted; `seed` the derived seed
    of this `(problem_id, index)`; `settings` the resolved settings the engine used; `targets` where the laws themselves
    are kept, None where they are not; `opened_thinking` says that the prompt ended with an open `<think>`, so that the
    completion starts inside the thinking.
    """

    problem_id: str
    index: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    completion: str
    finish_reason: FinishReason
    entropy_nats: float | None
    seed: int
    settings: SamplingSettings
    engine: str
    model_hash: str
    survivors: float | None = None
    targets: Span | None = None
    opened_thinking: bool = False

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
    optional = {"survivors": None, "targets": None, "opened_thinking": False}
    body = {item.name: {**optional, **value}[item.name] for item in dataclasses.fields(Sample)}
    body["prompt_ids"], body["completion_ids"] = tuple(body["prompt_ids"]), tuple(body["completion_ids"])
    body["settings"] = SamplingSettings(**body["settings"])
    body["targets"] = Span(**body["targets"]) if body["targets"] is not None else None
    return Sample(**body)


def grade_from_json(value: Mapping[str, Json]) -> Grade:
    """Read a Grade back from its JSON object."""
    return Grade(**{item.name: value[item.name] for item in dataclasses.fields(Grade)})
