"""Intervals, paired tests and power over problems: numpy alone, seeds given by the caller, every formula named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Group = TypeVar("Group")
_CHUNK = 1000
# Two-sided 5 % and 80 % power: normal quantiles of 0.975 and 0.80.
_Z_LEVEL, _Z_POWER = 1.959964, 0.841621


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], seed: int, resamples: int = 10_000) -> Interval:
    """The mean over problems with its percentile bootstrap interval (Efron 1979). Raises ValueError without values."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError("a bootstrap needs at least one value, one per problem")
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            data[generator.integers(0, data.size, (min(_CHUNK, resamples - start), data.size))].mean(axis=1)
            for start in range(0, resamples, _CHUNK)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap(a: Sequence[float], b: Sequence[float], seed: int, resamples: int = 10_000) -> Interval:
    """mean(b - a) over the same problems in the same order, with its interval.

    Raises ValueError where lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired bootstrap needs the same problems in both arms, got {len(a)} and {len(b)}")
    return bootstrap(list(np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)), seed, resamples)


def nested_bootstrap(values: Sequence[Sequence[float]], seed: int, resamples: int = 10_000) -> Interval:
    """The mean of `values` [runs, problems] with an interval that holds for other runs and other problems.

    Each resample draws runs and problems with replacement, the same problems in all its runs (they are crossed, not
    nested in them: Owen, "The pigeonhole bootstrap", 2007, which is conservative). One run is the plain bootstrap; with
    two or three the part of the runs is rough. Raises ValueError where the runs have unequal problems or none.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 2 or data.size == 0:
        raise ValueError("a nested bootstrap needs runs of the same problems, at least one of each")
    runs, problems = data.shape
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        part = slice(start, min(start + _CHUNK, resamples))
        count = part.stop - part.start
        # The weight of a run or problem is how often it was drawn, so a mean is a product of matrices.
        weights = generator.multinomial(problems, np.full(problems, 1 / problems), count) / problems
        chosen = generator.multinomial(runs, np.full(runs, 1 / runs), count) / runs
        means[part] = np.einsum("cr,rp,cp->c", chosen, data, weights, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """The two-sided exact p-value of McNemar's test: binomial(only_a + only_b, 1/2) on the discordant pairs."""
    if only_a < 0 or only_b < 0:
        raise ValueError("counts of discordant pairs are not negative")
    pairs = only_a + only_b
    tail = sum(math.comb(pairs, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, float(2 * tail / (1 << pairs)))


def smallest_difference(a: Sequence[float], b: Sequence[float] | None = None, *, n: int | None = None) -> float | None:
    """The smallest paired difference of means the set could show: 80 % power, two-sided 5 %, normal approximation.

    (z_0.975 + z_0.80) * sd / sqrt(problems), with sd the spread of the differences b - a. Before a second arm exists,
    `b` is None and sd is that of two independent arms of `n` samples a problem with the pass rates of `a`:
    sqrt(mean(2 a (1 - a) / n)). None for fewer than two problems.
    """
    first = np.asarray(a, dtype=np.float64)
    if first.size < 2:
        return None
    if b is not None:
        if len(b) != first.size:
            raise ValueError("both arms need the same problems")
        spread = float(np.std(np.asarray(b, dtype=np.float64) - first, ddof=1))
    else:
        spread = math.sqrt(float(np.mean(2 * first * (1 - first))) / max(1, n or 1))
    return float((_Z_LEVEL + _Z_POWER) * spread / math.sqrt(first.size))


def smallest_of_interval(interval: Interval) -> float:
    """The smallest difference that a rule "the interval leaves out zero" would claim with 80 % power.

    (z_0.975 + z_0.80) standard errors, with the interval's width as 2 * z_0.975 of them (normal approximation).
    """
    return (_Z_LEVEL + _Z_POWER) * (interval.high - interval.low) / (2 * _Z_LEVEL)


def quartiles(base: Mapping[str, float]) -> dict[str, list[str]]:
    """Problem ids in four nearly equal groups by the base's pass rate: "hardest", "harder", "easier", "easiest".

    Ties are broken by id, so that the groups depend on the rates alone and not on the order of the set.
    """
    ordered = sorted(base, key=lambda problem: (base[problem], problem))
    parts = np.array_split(np.arange(len(ordered)), 4)
    names = ("hardest", "harder", "easier", "easiest")
    return {name: [ordered[i] for i in part] for name, part in zip(names, parts, strict=True)}


def groups(labels: Mapping[str, Group]) -> dict[Group, list[str]]:
    """Problem ids by label, such as their difficulty, in the order of first appearance."""
    found: dict[Group, list[str]] = {}
    for problem, label in labels.items():
        found.setdefault(label, []).append(problem)
    return found
