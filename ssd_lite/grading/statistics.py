"""Intervals, paired tests and power over problems: numpy alone, seeds given by the caller, every formula named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Group = TypeVar("Group")
_CHUNK = 1000
# Two-sided 5 % and 80 % power: normal quantiles of 0.975 and 0.80.
_Z_LEVEL, _Z_POWER = 1.959964, 0.841621
# The Poisson mean at which four or more changes are seen in 80 % of comparisons.
_FEWEST_CHANGES = 5.5


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


def smallest_difference(
    a: Sequence[float], b: Sequence[float] | None = None, *, n: float | None = None, k: int = 1
) -> float | None:
    """The smallest paired difference of means the set could show: 80 % power, two-sided 5 %, normal approximation.

    (z_0.975 + z_0.80) * sd / sqrt(problems), with sd the spread of the differences b - a. Before a second arm exists,
    `b` is None, and the difference is that of two independent arms: `_planned_difference` with `n` samples a problem of
    which `a` is pass@k. None for fewer than two problems, and where it is beyond any change of the mean p that
    is possible, max(p, 1 - p): the set is too small to tell. Arms of unequal n count with 2 / (1 / n_a + 1 / n_b).
    """
    first = np.asarray(a, dtype=np.float64)
    if first.size < 2:
        return None
    if b is None:
        found = _planned_difference(first, max(1, n or 1) / k)
    elif len(b) != first.size:
        raise ValueError("both arms need the same problems")
    else:
        spread = float(np.std(np.asarray(b, dtype=np.float64) - first, ddof=1))
        found = (_Z_LEVEL + _Z_POWER) * spread / math.sqrt(first.size)
    mean = float(np.mean(first))
    return found if found <= max(mean, 1 - mean) else None


def _planned_difference(rates: FloatArray, draws: float) -> float:
    """What two independent arms could show, both with the pass `rates` that one of them had in `draws` a problem.

    pass@k of n samples counts as n / k draws: exact for k = 1 and k = n, an upper bound of its variance between
    (Hoeffding 1948). Rates of few draws are too often 0 or 1, which would leave no variance and so claim any power:
    each is shrunk by one draw at the mean rate. The second arm has the variance of the rates moved by the difference,
    towards 1/2; with M = problems * draws / (z_0.975 + z_0.80)^2, mean rate p and mean variance v it solves

        M d^2 = v + (v + d |1 - 2p| - d^2).

    Never below 5.5 changed draws, the mean at which 80 % of Poisson counts reach 4: fewer than 4 problems that change
    one way are never claimed among 9 or more, since (1 - 3 / problems)^problems of a bootstrap's resamples miss them
    all, more than 2.5 %. Simulated with 20 to 164 problems, 1 and 5 samples, rates zero, low, middle, high and mixed,
    the larger of this and the spread seen: claimed some 70 to 97 times of 100. Where all rates are near 0 or 1, some
    of each, a single draw cannot tell that, and the size is named too large: claimed up to 99 times.
    """
    mean = float(np.mean(rates))
    shrunk = (rates * draws + mean) / (draws + 1)
    variance = float(np.mean(shrunk * (1 - shrunk)))
    size = rates.size * draws / (_Z_LEVEL + _Z_POWER) ** 2
    slope = abs(1 - 2 * mean)
    found = (slope + math.sqrt(slope**2 + 8 * variance * (size + 1))) / (2 * (size + 1))
    return max(found, _FEWEST_CHANGES / (rates.size * draws))


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
