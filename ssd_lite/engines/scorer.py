"""Reads what a model makes of given texts, position by position: one function for both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.position_facts import Bools, Facts, Ints, joined, read_block
from ssd_lite.engines.sampler import CountTokens, Engine
from ssd_lite.errors import UserError
from ssd_lite.records import SamplingSettings

T = TypeVar("T")
Take = Callable[[int, npt.NDArray[np.float32], Bools], T]
"""What is kept of a piece: from a text's number, logits [n, V] and which of its positions [P] these n are.

An engine may come back with positions that were taken before, after it had too little memory.
"""
BLOCK_BYTES = 64 * 2**20
"""Logits in float32 that are read at once."""


@dataclass(frozen=True)
class Text:
    """A prompt and a completion as token ids, and which positions of the completion are read.

    `ask` [positions, R] are tokens whose log-probability is wanted at each of them.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    positions: Ints
    ask: Ints | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads; the last token is never needed as context."""
        return (self.prompt_ids + self.completion_ids)[:-1]

    @property
    def rows(self) -> Ints:
        """Places in `ids` whose logits are those of the positions."""
        return self.positions + (len(self.prompt_ids) - 1)

    @property
    def tokens(self) -> Ints:
        """The tokens that stand at the positions."""
        return np.asarray(self.completion_ids, dtype=np.int64)[self.positions]


def spread_positions(length: int, most: int) -> Ints:
    """At most `most` positions of a completion of `length` tokens, at even distances, the first included."""
    if length <= most:
        return np.arange(length)
    return np.arange(most, dtype=np.int64) * length // most


class Scorer(Protocol):
    """An engine with a loaded model that reads texts."""

    def visit(self, texts: Sequence[Text], take: Take[T], count_tokens: CountTokens) -> Iterator[tuple[int, list[T]]]:
        """Number of each text once, in any order, and what `take` made of its pieces, in order.

        `count_tokens(n)` is told of tokens read, often. The logits are valid while `take` runs.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def visit(
    engine: Engine,
    model: Path,
    texts: Sequence[Text],
    take: Take[T],
    count_tokens: CountTokens,
    threads: int | None = None,
) -> Iterator[tuple[int, list[T]]]:
    """Read `texts` with the model in the folder (hf) or GGUF file (llama_cpp) `model`; see `Scorer.visit`.

    Raises MissingLibraryError if the library is not there, UserError where a text is longer than the model's context.
    """
    scorer = _open(engine, model, threads)
    try:
        yield from scorer.visit(texts, take, count_tokens)
    finally:
        scorer.close()


def score(
    engine: Engine,
    model: Path,
    texts: Sequence[Text],
    laws: Sequence[SamplingSettings],
    count_tokens: CountTokens,
    threads: int | None = None,
) -> Iterator[tuple[int, Facts]]:
    """Number and facts of each text once, in any order; raises as `visit` does.

    `laws` are those whose support is measured, at least one.
    """

    def take(number: int, logits: npt.NDArray[np.float32], here: Bools) -> Facts:
        text = texts[number]
        ask = text.ask[here] if text.ask is not None else None
        return read_block(logits, text.tokens[here], text.positions[here], laws, ask)

    for number, parts in visit(engine, model, texts, take, count_tokens, threads):
        yield number, joined(parts)


def _open(engine: Engine, model: Path, threads: int | None) -> Scorer:
    match engine:
        case "hf":
            from ssd_lite.engines.hf_scorer import HfScorer

            return HfScorer(model, threads)
        case "llama_cpp":
            from ssd_lite.engines.llama_cpp_scorer import LlamaCppScorer

            return LlamaCppScorer(model, threads)
        case _:
            raise UserError(f"{engine!r} is no engine that tells whole laws; hf and llama_cpp do.")


def check_context(texts: Sequence[Text], context_length: int) -> None:
    """Raise UserError where a text does not fit the model's context."""
    longest = max((len(text.ids) for text in texts), default=0)
    if longest > context_length:
        raise UserError(
            f"a prompt and its completion have {longest} tokens, the model's context holds {context_length}.",
            next_step="Leave such samples out, or lower max_new_tokens.",
        )
