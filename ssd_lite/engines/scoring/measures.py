"""What position facts say about a model, and about two models on the same texts: arithmetic only, formulas in place.

p is the model's law at T = 1 without truncation, S the support of the sampling law at a position. A position is of one
kind, by p alone, so that kinds do not depend on any decoding:
settled: p(1st) above 1 - LOCK_TAIL · lock: p(1st) at least LOCK_TOP, and at least LOCK_TAIL spread over distractors ·
fork: p(1st) below LOCK_TOP and p(2nd) at least FORK_RIVAL · diffuse: all others, no favourite and no rival.
The words are those of arXiv 2604.01193; the thresholds are this program's, see docs/diagnose.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.scoring.position_facts import RANKS, Facts
from ssd_lite.records import SamplingSettings

LOCK_TOP = 0.7
LOCK_TAIL = 0.01
FORK_RIVAL = 0.1
TAIL_HERE = 0.01
"""A position has a tail where at least so much mass at the law's temperature lies outside S."""
COMPARED_RANKS = 20
KINDS = ("settled", "lock", "fork", "diffuse")
Bools = npt.NDArray[np.bool_]


def kinds(facts: Facts) -> npt.NDArray[np.int64]:
    """The kind of each position [P], as its number in KINDS."""
    first, second = np.exp(facts.top[:, 0]), np.exp(facts.top[:, 1])
    peaked, rival = first >= LOCK_TOP, second >= FORK_RIVAL
    tail = 1.0 - first >= LOCK_TAIL
    found: npt.NDArray[np.int64] = np.where(peaked, np.where(tail, 1, 0), np.where(rival, 2, 3)).astype(np.int64)
    return found


def of_model(
    facts: Facts, laws: Sequence[SamplingSettings], curves: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """Means over all positions, first under `laws[0]`, the sampling law; `curves` names rows of further laws.

    `tail`: 1 - mass of S at the law's T, what plain sampling at T draws and truncation does not · `tail_positions`:
    share of positions with a tail · `survivors`: |S| · `law_entropy`: of the law itself, in nats · `tail_at_1`:
    1 - Kept(S), Kept(S) the mass of S at T = 1, what the loss takes away · `minus_log_kept`: mean of -log Kept(S) in
    nats, the first term of Eq. 4 before training · `locks_closed`: share of the locks where S is the first token alone
    · `forks_cut`: share of the forks where S leaves out a token of FORK_RIVAL or more · `entropy`: H(p) in nats ·
    `kinds`: shares · `drawn_first`: share of tokens that are the model's first · `surprise`: mean of -log p(token) in
    nats · `mass_by_rank`: mean p of rank 1, 2, … · `curves`: for each of these laws its temperature and the figures
    that depend on it.
    """
    found = kinds(facts)
    return {
        "positions": len(facts),
        **_under(facts, 0),
        "minus_log_kept": _mean(-np.log(facts.kept_at_1[:, 0])),
        "entropy": _mean(facts.entropy),
        "kinds": {name: _mean(found == number) for number, name in enumerate(KINDS)},
        "drawn_first": _mean(facts.drawn_rank == 1),
        "surprise": _mean(-facts.drawn),
        "mass_by_rank": [_number(value) for value in np.exp(facts.top).mean(axis=0)],
        "curves": {
            name: [{"temperature": laws[number].temperature, **_under(facts, number)} for number in numbers]
            for name, numbers in (curves or {}).items()
        },
    }


def _under(facts: Facts, law: int) -> dict[str, Any]:
    tail, survivors, found = 1.0 - facts.kept[:, law], facts.survivors[:, law], kinds(facts)
    cut = (np.exp(facts.top) >= FORK_RIVAL).sum(axis=1) > survivors
    return {
        "tail": _mean(tail),
        "tail_positions": _mean(tail >= TAIL_HERE),
        "tail_at_1": _mean(1.0 - facts.kept_at_1[:, law]),
        "survivors": _mean(survivors),
        "law_entropy": _mean(facts.law_entropy[:, law]),
        "locks_closed": _mean(survivors[found == KINDS.index("lock")] == 1),
        "forks_cut": _mean(cut[found == KINDS.index("fork")]),
    }


def along(parts: Sequence[Facts], lengths: Sequence[int]) -> list[float | None]:
    """Mean H(p) in nats in the first to the fourth quarter of completions of these lengths in tokens.

    A model that falls into noise shows it here: its own law widens as the text goes on. None for a quarter without
    positions.
    """
    quarter = np.concatenate([4 * part.place // length for part, length in zip(parts, lengths, strict=True)])
    entropy = np.concatenate([part.entropy for part in parts])
    return [_mean(entropy[quarter == number]) for number in range(4)]


def mean_entropy(parts: Sequence[Facts]) -> tuple[float, float | None]:
    """Mean over the completions of their mean H(p), in nats, and its standard error; None for a single completion."""
    means = np.array([part.entropy.mean() for part in parts])
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else None
    return _number(means.mean()), None if error is None else _number(error)


def between(base: Facts, tuned: Facts) -> dict[str, Any]:
    """Two models at the same positions; `tuned.asked` are its log-probabilities of the base's top ids.

    Raises ValueError where the positions are not the same.
    `swaps`: share of positions whose likeliest token is another one · `rank_agreement`: mean Spearman correlation of
    both models' ranks over the base's top COMPARED_RANKS · `mass_by_base_rank`: tuned mean p of the base's rank 1, 2,
    … · `kept`: tuned and base mass at T = 1 on the base's S, over the `kept_positions` where |S| is at most RANKS.
    """
    if len(base) != len(tuned) or tuned.asked.shape != base.top.shape or (base.place != tuned.place).any():
        raise ValueError("both models must be read at the same positions, the second at the base's top ids")
    found, swapped = kinds(base), base.top_ids[:, 0] != tuned.top_ids[:, 0]
    inside = base.survivors[:, :1] > np.arange(base.top.shape[1])
    small = base.survivors[:, 0] <= base.top.shape[1]
    after = np.where(inside, np.exp(tuned.asked), 0.0).sum(axis=1)
    return {
        "positions": len(base),
        "swaps": _mean(swapped),
        "swaps_by_kind": {name: _mean(swapped[found == number]) for number, name in enumerate(KINDS)},
        "rank_agreement": _mean(_spearman(tuned.asked[:, :COMPARED_RANKS])),
        "mass_by_base_rank": [_number(value) for value in np.exp(tuned.asked).mean(axis=0)],
        "kept": {"base": _mean(base.kept_at_1[small, 0]), "tuned": _mean(after[small])},
        "kept_positions": int(small.sum()),
        "locks": _locks(base, tuned, found == KINDS.index("lock")),
        "forks": _forks(base, tuned, found == KINDS.index("fork")),
    }


def _spearman(log_probs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Spearman's rho [P] between the column order, which is the base's ranking, and the ranking by these values.

    rho = 1 - 6 sum d^2 / (n (n^2 - 1)), d the difference of ranks; of equal values the earlier column ranks first.
    """
    n = log_probs.shape[1]
    ranks = np.argsort(np.argsort(-log_probs, axis=1, kind="stable"), axis=1, kind="stable")
    rho: npt.NDArray[np.float64] = 1.0 - 6.0 * ((ranks - np.arange(n)) ** 2).sum(axis=1) / (n * (n**2 - 1))
    return rho


def _locks(base: Facts, tuned: Facts, here: Bools) -> dict[str, Any]:
    """The base's locks: share whose first token of the base gained mass, and that mass before and after."""
    before, after = np.exp(base.top[here, 0]), np.exp(tuned.asked[here, 0])
    return {
        "count": int(here.sum()),
        "sharpened": _mean(after > before),
        "first_base": _mean(before),
        "first_tuned": _mean(after),
    }


def _forks(base: Facts, tuned: Facts, here: Bools) -> dict[str, Any]:
    """The base's forks: share that still are forks, and survivors of the sampling law and H(p) before and after."""
    return {
        "count": int(here.sum()),
        "kept": _mean(kinds(tuned)[here] == KINDS.index("fork")),
        "survivors_base": _mean(base.survivors[here, 0]),
        "survivors_tuned": _mean(tuned.survivors[here, 0]),
        "entropy_base": _mean(base.entropy[here]),
        "entropy_tuned": _mean(tuned.entropy[here]),
    }


def _mean(values: npt.NDArray[Any]) -> float | None:
    """The mean as JSON holds it; None over nothing."""
    return _number(float(values.mean())) if len(values) else None


def _number(value: float) -> float:
    """Six significant digits: more would be rounding of the logits."""
    return float(f"{value:.6g}")


def thresholds() -> dict[str, float]:
    """The constants of this file, for the record."""
    return {
        "lock_top": LOCK_TOP,
        "lock_tail": LOCK_TAIL,
        "fork_rival": FORK_RIVAL,
        "tail_here": TAIL_HERE,
        "compared_ranks": COMPARED_RANKS,
        "ranks": RANKS,
    }
