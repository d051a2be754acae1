"""pass@k, intervals, paired tests and power against values worked out by other means."""

import itertools
import math

import numpy as np
import pytest

from ssd_lite.grading import statistics
from ssd_lite.grading.pass_at_k import pass_at_k
from ssd_lite.stages.evaluation.arm_report import power


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
    # The second arm's rates are 0.5 + d, of less variance: 0.25 - d^2, so d^2 (1 + 8 * 100 / 2.80^2) = 2 * 0.25.
    planned = statistics.smallest_difference([0.5] * 100, n=8)
    assert planned == pytest.approx(math.sqrt(0.5 / (1 + 800 / 2.801585**2)), rel=1e-4)
    assert statistics.smallest_difference([0.5]) is None


def test_rates_without_variance_do_not_make_a_set_that_shows_anything():
    """Nobody right, everybody right, one draw a problem: the rates' own variance is 0."""
    for rates in ([0.0] * 59, [1.0] * 59):
        assert statistics.smallest_difference(rates, n=1) == pytest.approx(1 / (1 + 59 / 2.801585**2), rel=1e-4)
        many = statistics.smallest_difference(rates, n=10)
        assert many is not None
        assert 5.5 / 590 <= many < 0.02
    mixed = [1.0] * 20 + [0.0] * 39
    once, often = (statistics.smallest_difference(mixed, n=n) for n in (1, 10))
    assert once is not None
    assert often is not None
    assert 0.15 < once < 0.25
    assert often < 0.05  # ten draws that agree do say that little varies
    # pass@n of n samples is one draw.
    assert statistics.smallest_difference(mixed, n=10, k=10) == once


def test_a_set_too_small_to_show_any_difference_names_none():
    for rates in ([0.0] * 5, [1.0, 0.0, 1.0, 0.0]):
        assert statistics.smallest_difference(rates, n=1) is None
    assert statistics.smallest_difference([1.0, 0.0], [0.0, 1.0]) is None


def test_fewer_than_four_problems_that_change_are_never_claimed():
    """The floor of the smallest difference: 5.5 changes are expected where 4 are seen in 80 % of sets."""
    for problems in (9, 20, 59, 400):
        lows = [statistics.bootstrap([1.0] * d + [0.0] * (problems - d), 1).low for d in (3, 4)]
        assert lows[0] == 0 < lows[1]
    tail = sum(math.exp(-5.5) * 5.5**count / math.factorial(count) for count in range(4))
    assert tail == pytest.approx(0.2, abs=0.005)


RATES = {"none": 0.0, "low": 0.03, "middle": 0.5, "high": 0.95, "mixed": None}


def drawn(draw: np.random.Generator, kind: str, n: int, effect: float) -> tuple[list[float], list[float]]:
    """Rates of 59 problems in two arms of n samples; the second passes more often (at high rates: less) by `effect`."""
    same = RATES[kind]
    # Beta(0.5, 0.9): many hard and some easy problems, as a small model has them.
    rate = draw.beta(0.5, 0.9, 59) if same is None else np.full(59, same)
    room, sign = (rate, -1) if kind == "high" else (1 - rate, 1)
    moved = np.clip(rate + sign * effect * room / room.mean(), 0, 1)
    a, b = draw.binomial(n, rate) / n, draw.binomial(n, moved) / n
    return a.tolist(), b.tolist()


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("n", [1, 5])
def test_a_difference_of_the_named_size_is_claimed_in_about_four_of_five(kind: str, n: int) -> None:
    draw, count, named = np.random.default_rng(0), 150, []
    for _ in range(count):
        a, b = drawn(draw, kind, n, 0.0)
        named.append(power(a, b, n) or 1.0)
    claims = 0
    for _ in range(count):
        found = statistics.paired_bootstrap(*drawn(draw, kind, n, float(np.mean(named))), seed=1, resamples=1000)
        claims += found.low > 0 or found.high < 0
    assert 0.66 <= claims / count <= 0.97  # 0.8 is promised with a standard error of 0.033


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
