"""What an engine is that reads given texts, position by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.sampling.sampler import CountTokens
from ssd_lite.engines.scoring.position_facts import Bools, Ints
from ssd_lite.errors import UserError

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


def check_context(texts: Sequence[Text], context_length: int) -> None:
    """Raise UserError where a text does not fit the model's context."""
    longest = max((len(text.ids) for text in texts), default=0)
    if longest > context_length:
        raise UserError(
            f"a prompt and its completion have {longest} tokens, the model's context holds {context_length}.",
            next_step="Leave such samples out, or lower max_new_tokens.",
        )
