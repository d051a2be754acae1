"""What is kept of the logits at a position: enough for every measure, little enough to hold for many positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.sampling.law import top_k, truncate
from ssd_lite.records import SamplingSettings

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
RANKS = 60
"""Ranks that are kept one by one."""
# Logits that are read at once: 256 rows of 49,152 under 10 laws took 0.14 s of CPU time in pieces that fit the
# processor's cache, and 0.48 s in one.
_PIECE = 2**20
# exp(-1e4) is 0, and 0 * -1e4 is 0, where 0 * -inf would be no number (some models mask padding tokens with -inf).
_LOWEST = np.float32(-1e4)


@dataclass(frozen=True)
class Facts:
    """Facts of P positions under L laws; all logarithms are natural. Everything is taken over the whole vocabulary.

    `place` [P], the position in its completion · `drawn` [P], log-probability at T = 1 of the token that stands there ·
    `drawn_rank` [P], its rank, 1 is the likeliest · `entropy` [P], of the law at T = 1 without truncation · `top_ids`,
    `top` [P, R], the likeliest tokens and their log-probabilities at T = 1, falling · `asked` [P, R], log-probabilities
    at T = 1 of tokens that were asked for (no columns where none were).
    Of each law: `survivors` [P, L], tokens in its support S · `law_entropy` [P, L], of the law itself · `kept` [P, L],
    mass of S at the law's own temperature before truncation · `kept_at_1` [P, L], mass of S at T = 1, the Kept(S) of
    arXiv 2604.01193, Eq. 4, where student and teacher are the same model.
    """

    place: Ints
    drawn: Doubles
    drawn_rank: Ints
    entropy: Doubles
    top_ids: Ints
    top: Doubles
    asked: Doubles
    survivors: Ints
    law_entropy: Doubles
    kept: Doubles
    kept_at_1: Doubles

    def __len__(self) -> int:
        return len(self.place)


def joined(parts: Sequence[Facts]) -> Facts:
    """The positions of all parts, one after another. Raises ValueError without a part."""
    return Facts(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Facts)))


def read_block(
    logits: npt.NDArray[np.float32],
    tokens: Ints,
    place: Ints,
    laws: Sequence[SamplingSettings],
    ask: Ints | None = None,
) -> Facts:
    """Facts of a block of `logits` [P, V]; `tokens`, `place` [P]; `ask` [P, R], tokens whose log-probability is wanted.

    Powers are taken in float32 and summed in float64: log-probabilities are right to about 1e-6. `engines.law` does the
    truncation, so the support is the sampler's.
    """
    step = max(1, _PIECE // logits.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(logits), step)]
    return joined([_read(logits[p], tokens[p], place[p], laws, ask[p] if ask is not None else None) for p in parts])


def _read(
    logits: npt.NDArray[np.float32], tokens: Ints, place: Ints, laws: Sequence[SamplingSettings], ask: Ints | None
) -> Facts:
    shifted = np.maximum(logits - logits.max(axis=1, keepdims=True), _LOWEST)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))[:, None].astype(np.float32)
    drawn = np.take_along_axis(log_probs, tokens[:, None], axis=1)
    depth = min(logits.shape[1], max([RANKS, *(law.top_k or logits.shape[1] for law in laws)]))
    ids, likeliest = top_k(log_probs, depth)
    top: Doubles = likeliest.astype(np.float64)
    columns = [_under(law, ids, top, _log_partition(log_probs, law.temperature)) for law in laws]
    survivors, entropies, kept, kept_at_1 = (np.stack(each, axis=1) for each in zip(*columns, strict=True))
    asked = np.take_along_axis(log_probs, ask, axis=1) if ask is not None else np.empty((len(tokens), 0))
    return Facts(
        place=place,
        drawn=drawn[:, 0].astype(np.float64),
        drawn_rank=(log_probs > drawn).sum(axis=1) + 1,
        entropy=-(np.exp(log_probs) * log_probs).sum(axis=1, dtype=np.float64),
        top_ids=ids[:, :RANKS],
        top=top[:, :RANKS],
        asked=asked.astype(np.float64),
        survivors=survivors.astype(np.int64),
        law_entropy=entropies,
        kept=kept,
        kept_at_1=kept_at_1,
    )


def _log_partition(log_probs: npt.NDArray[np.float32], temperature: float) -> Doubles:
    """log sum_v p(v)^(1/T) [P], over the whole vocabulary."""
    if temperature == 1.0:
        return np.zeros(len(log_probs))
    partition: Doubles = np.log(np.exp(log_probs / np.float32(temperature)).sum(axis=1, dtype=np.float64))
    return partition


def _under(law: SamplingSettings, ids: Ints, top: Doubles, log_partition: Doubles) -> tuple[Doubles, ...]:
    """Survivors, entropy of the law, mass of its support at T and at T = 1, each [P]."""
    k = law.top_k or ids.shape[1]
    left = truncate(ids[:, :k], top[:, :k], law)
    inside, top = left.probs > 0, top[:, :k]
    at_t = np.where(inside, np.exp(top / law.temperature - log_partition[:, None]), 0.0).sum(axis=1)
    at_1 = np.where(inside, np.exp(top), 0.0).sum(axis=1)
    return left.counts().astype(np.float64), left.entropies(), np.minimum(at_t, 1.0), np.minimum(at_1, 1.0)
