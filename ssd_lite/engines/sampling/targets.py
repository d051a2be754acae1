"""Soft targets: at each position of a completion the teacher's surviving tokens and their probabilities q."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BYTES_A_POSITION, _BYTES_A_SURVIVOR = 2, 8


@dataclass(frozen=True)
class Targets:
    """The law each token of a completion was drawn from, positions one after another.

    From a server that is the law as far as its log-probabilities tell it, so that its mean over draws is the law
    (`server_law.ToldLaw.target`).

    `counts` [positions] uint16, the survivors of each; `ids` and `probs` [sum of counts], uint32 and float32, most
    likely first; the probs of a position add up to 1.
    """

    counts: npt.NDArray[np.uint16]
    ids: npt.NDArray[np.uint32]
    probs: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.counts)

    def padded(self, width: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Ids and probs as [positions, width], filled up with id 0 and prob 0; width None takes the largest count."""
        width = int(self.counts.max(initial=1)) if width is None else width
        ids = np.zeros((len(self), width), dtype=np.int64)
        probs = np.zeros((len(self), width), dtype=np.float32)
        there = np.arange(width) < self.counts[:, None]
        ids[there], probs[there] = self.ids, self.probs
        return ids, probs

    def hold(self, tokens: Sequence[int]) -> bool:
        """True if every token could have been drawn from the law of its position."""
        return len(tokens) == len(self) and not len(self.outside(tokens))

    def outside(self, tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """Positions whose token could not have been drawn from their law; one token a position."""
        drawn = np.repeat(np.asarray(tokens, dtype=np.int64), self.counts)
        starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)[:-1]])
        return np.flatnonzero(np.add.reduceat(self.ids == drawn, starts) == 0)

    def to_bytes(self) -> bytes:
        """Counts, ids and probs, little-endian, deflated; `from_bytes` reads them back bit for bit."""
        parts = (self.counts.astype("<u2"), self.ids.astype("<u4"), self.probs.astype("<f4"))
        return zlib.compress(b"".join(part.tobytes() for part in parts), level=6)

    @classmethod
    def from_bytes(cls, data: bytes, positions: int) -> Targets:
        """The targets of a completion of `positions` tokens. Raises ValueError for bytes that are none."""
        try:
            raw = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError(f"cannot be inflated: {error}") from error
        head = positions * _BYTES_A_POSITION
        counts = np.frombuffer(raw[:head], dtype="<u2")
        total = int(counts.sum(dtype=np.int64))
        if len(counts) != positions or len(raw) != head + total * _BYTES_A_SURVIVOR or not counts.all():
            raise ValueError(f"these are not the targets of {positions} positions")
        middle = head + 4 * total
        return cls(counts, np.frombuffer(raw[head:middle], dtype="<u4"), np.frombuffer(raw[middle:], dtype="<f4"))


class TargetsBuilder:
    """Collects the targets of one completion while it is drawn."""

    def __init__(self) -> None:
        self._ids: list[npt.NDArray[np.int64]] = []
        self._probs: list[npt.NDArray[np.float64]] = []

    def add(self, ids: npt.NDArray[np.int64], probs: npt.NDArray[np.float64]) -> None:
        """The law of the next position: ids and probs [k], most likely first, zero where cut.

        Raises ValueError for a law without a survivor, which only logits that are no numbers give.
        """
        count = int((probs > 0).sum())
        if count == 0:
            raise ValueError("the model's logits are no numbers: no token survives")
        self._ids.append(ids[:count].copy())
        self._probs.append(probs[:count].copy())

    def build(self) -> Targets:
        """What was collected."""
        counts = np.array([len(part) for part in self._ids], dtype=np.uint16)
        if not self._ids:
            return Targets(counts, np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.float32))
        return Targets(
            counts, np.concatenate(self._ids).astype(np.uint32), np.concatenate(self._probs).astype(np.float32)
        )
