"""The sampling law, once for all engines: temperature, top-k, top-p inside it, min-p, then a draw with its own seed.

Because temperature keeps ranks, taking the top-k first gives the same law and touches only k numbers a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_lite.records import SamplingSettings

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
_BLOCKS_PER_K = 64


def derived_seed(seed: int, problem_id: str, index: int) -> int:
    """The seed of one completion: 63 bits of SHA-256 over run seed, problem and index, whatever the order or batch."""
    digest = hashlib.sha256(f"{seed}\0{problem_id}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Uniforms:
    """The stream of uniform numbers in [0, 1) of one completion (Philox, so streams of near seeds are independent)."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed))

    def __next__(self) -> float:
        return float(self._generator.random())


@dataclass(frozen=True)
class Survivors:
    """Tokens that survive truncation, most likely first: `ids` [rows, k]; `probs` [rows, k] float64, zero where cut."""

    ids: Ints
    probs: npt.NDArray[np.float64]

    def entropies(self) -> npt.NDArray[np.float64]:
        """Shannon entropy of each row's law, in nats."""
        entropy: npt.NDArray[np.float64] = -(self.probs * np.log(np.where(self.probs > 0, self.probs, 1.0))).sum(axis=1)
        return entropy

    def counts(self) -> Ints:
        """Survivors of each row."""
        counts: Ints = (self.probs > 0).sum(axis=1)
        return counts

    def draw(self, uniforms: Sequence[float]) -> Ints:
        """One token id a row: the first whose cumulated mass exceeds the row's uniform number."""
        cumulated = np.cumsum(self.probs, axis=1)
        targets = np.asarray(uniforms)[:, None] * cumulated[:, -1:]
        columns = np.minimum((cumulated <= targets).sum(axis=1), self.counts() - 1)
        drawn: Ints = np.take_along_axis(self.ids, columns[:, None], axis=1)[:, 0]
        return drawn


def survivors(logits: Floats, settings: SamplingSettings) -> Survivors:
    """Apply the law to `logits` [rows, vocabulary]; columns of the result are sorted by falling probability."""
    k = settings.top_k or logits.shape[1]
    ids, kept = top_k(logits, min(k, logits.shape[1]))
    return truncate(ids, kept, settings)


def truncate(ids: Ints, logits: Floats, settings: SamplingSettings) -> Survivors:
    """Temperature, nucleus and min-p over top-k candidates [rows, k] that are sorted by falling logit."""
    scaled = logits.astype(np.float64) / settings.temperature
    weights = np.exp(scaled - scaled[:, :1])
    probs = weights / weights.sum(axis=1, keepdims=True)
    if settings.top_p < 1.0:
        mass_before = np.cumsum(probs, axis=1) - probs
        probs = np.where(mass_before < settings.top_p, probs, 0.0)
        probs /= probs.sum(axis=1, keepdims=True)
    if settings.min_p > 0.0:
        probs = np.where(probs >= settings.min_p * probs[:, :1], probs, 0.0)
        probs /= probs.sum(axis=1, keepdims=True)
    return Survivors(ids, probs)


def top_k(logits: Floats, k: int) -> tuple[Ints, Floats]:
    """Ids and values [rows, k] of the k largest logits, falling.

    A large vocabulary is cut into strided blocks first: the k largest values lie in the k blocks with the largest
    maxima.
    """
    rows, vocabulary = logits.shape
    blocks = vocabulary // _BLOCKS_PER_K
    if blocks <= 4 * k:
        return _sorted_top(logits, np.broadcast_to(np.arange(vocabulary), logits.shape), k)
    whole = blocks * _BLOCKS_PER_K
    maxima = logits[:, :whole].reshape(rows, _BLOCKS_PER_K, blocks).max(axis=1)
    best = np.argpartition(maxima, blocks - k, axis=1)[:, blocks - k :]
    ids = (best[:, :, None] + np.arange(0, whole, blocks)).reshape(rows, -1)
    tail = np.broadcast_to(np.arange(whole, vocabulary), (rows, vocabulary - whole))
    ids = np.concatenate([ids, tail], axis=1)
    return _sorted_top(np.take_along_axis(logits, ids, axis=1), ids, k)


def _sorted_top(values: Floats, ids: npt.NDArray[np.integer], k: int) -> tuple[Ints, Floats]:
    if k < values.shape[1]:
        part = np.argpartition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
        values, ids = np.take_along_axis(values, part, axis=1), np.take_along_axis(ids, part, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    sorted_ids: Ints = np.take_along_axis(ids, order, axis=1).astype(np.int64)
    return sorted_ids, np.take_along_axis(values, order, axis=1)
