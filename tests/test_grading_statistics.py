"""pass@k, intervals, paired tests and power against values worked out by other means."""

import itertools
import math

import numpy as np
import pytest

from ssd_lite.grading import statistics
from ssd_lite.grading.pass_at_k import pass_at_k


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 4), (6, 6, 2), (7, 3, 7), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n, c, k):
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_refuses_what_it_cannot_estimate(n, c, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


def test_bootstrap_covers_the_mean_and_repeats_with_its_seed():
    values = [0.0, 1.0] * 50
    found = statistics.bootstrap(values, seed=1)
    assert found == statistics.bootstrap(values, seed=1)
    assert found.mean == 0.5
    # Normal approximation: 1.96 * 0.5 / sqrt(100).
    assert found.low == pytest.approx(0.5 - 0.098, abs=0.015)
    assert found.high == pytest.approx(0.5 + 0.098, abs=0.015)
    assert statistics.bootstrap([1.0] * 4, seed=0) == statistics.Interval(1.0, 1.0, 1.0)


def test_paired_bootstrap_sees_what_pairs_share():
    base = [i / 100 for i in range(100)]
    found = statistics.paired_bootstrap(base, [value + 0.01 for value in base], seed=3)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    with pytest.raises(ValueError, match="same problems"):
        statistics.paired_bootstrap([1.0], [1.0, 0.0], seed=3)


@pytest.mark.parametrize(("a", "b", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (1, 7, 18 / 256), (3, 3, 1.0), (600, 600, 1.0)])
def test_mcnemar_exact(a, b, p):
    assert statistics.mcnemar_exact(a, b) == pytest.approx(p)


def test_smallest_difference():
    # sd of the differences is 0.5 (+-0.5 in equal shares), nearly, over 400 problems: 2.80 * 0.5 / 20.
    differences = [0.5, -0.5] * 200
    found = statistics.smallest_difference([0.5] * 400, [0.5 + d for d in differences])
    assert found == pytest.approx(2.8016 * 0.5 / 20, rel=0.01)
    planned = statistics.smallest_difference([0.5] * 100, n=8)
    assert planned == pytest.approx(2.8016 * math.sqrt(2 * 0.25 / 8) / 10, rel=1e-4)
    assert statistics.smallest_difference([0.5]) is None


def test_quartiles_by_the_base_and_groups_by_label():
    rates = {f"p{i}": i / 10 for i in range(10)}
    parts = statistics.quartiles(rates)
    assert parts["hardest"] == ["p0", "p1", "p2"]
    assert [len(part) for part in parts.values()] == [3, 3, 2, 2]
    assert statistics.groups({"a": "easy", "b": "hard", "c": "easy"}) == {"easy": ["a", "c"], "hard": ["b"]}


def test_nested_bootstrap_of_one_run_is_the_plain_one() -> None:
    values = np.random.default_rng(0).random(40).tolist()
    plain, nested = statistics.bootstrap(values, 1), statistics.nested_bootstrap([values], 1)
    assert nested.mean == pytest.approx(plain.mean)
    assert nested.low == pytest.approx(plain.low, abs=0.01)
    assert nested.high == pytest.approx(plain.high, abs=0.01)


def test_nested_bootstrap_is_wider_where_the_runs_differ() -> None:
    problems = np.random.default_rng(0).random(40)
    alike = statistics.nested_bootstrap([problems, problems, problems], 0)
    apart = statistics.nested_bootstrap([problems - 0.3, problems, problems + 0.3], 0)
    assert apart.mean == pytest.approx(alike.mean)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


def test_nested_bootstrap_covers_the_truth() -> None:
    """Runs and problems with their own effects: the interval holds the true mean in about 95 of 100 worlds."""
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        values = (
            0.5 + 0.05 * draw.normal(size=(8, 1)) + 0.2 * draw.normal(size=(1, 60)) + 0.1 * draw.normal(size=(8, 60))
        )
        interval = statistics.nested_bootstrap(values.tolist(), 0, resamples=600)
        held += interval.low <= 0.5 <= interval.high
    assert 180 <= held <= 200


def test_nested_bootstrap_refuses_unequal_runs() -> None:
    for values in ([], [[]], [[0.1], [0.1, 0.2]]):
        with pytest.raises(ValueError):
            statistics.nested_bootstrap(values, 0)
