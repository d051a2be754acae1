"""The tuner takes the fastest thread count of the moment, looks again, and leaves a fixed one alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest

from ssd_lite.engines import threads
from ssd_lite.engines.threads import FIRST_PAUSE, LONGEST_PAUSE, ThreadTuner


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are then 1, 2 and 4."""
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)


def run(
    tuner: ThreadTuner, speed: Mapping[int, float], steps: int, noise: Callable[[int], float] = lambda _: 1.0
) -> None:
    """`steps` steps of 16 tokens on a machine with these tokens a second."""
    for number in range(steps):
        tuner.step(16 / speed[tuner.threads] * noise(number), 16)


def test_a_fixed_count_is_set_once_and_stays() -> None:
    seen: list[int] = []
    tuner = ThreadTuner(seen.append, fixed=3)
    run(tuner, {3: 1.0}, 1000)
    assert (seen, tuner.threads) == ([3], 3)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("speed", "best"), [({1: 73, 2: 11, 4: 9}, 1), ({1: 100, 2: 190, 4: 180}, 2), ({1: 1, 2: 2, 4: 3}, 4)]
)
def test_the_fastest_is_taken(speed: dict[int, float], best: int) -> None:
    seen: list[int] = []
    tuner = ThreadTuner(seen.append)
    run(tuner, speed, 9)
    assert tuner.threads == seen[-1] == best


@pytest.mark.usefixtures("four_cores")
def test_one_noisy_step_does_not_decide() -> None:
    tuner = ThreadTuner(lambda _: None)
    run(tuner, {1: 100, 2: 200, 4: 220}, 9, noise=lambda number: 1.25 if number == 8 else 1.0)
    assert tuner.threads == 4


@pytest.mark.usefixtures("four_cores")
def test_a_hopeless_count_costs_one_step() -> None:
    tuner = ThreadTuner(lambda _: None)
    run(tuner, {1: 100, 2: 10, 4: 10}, 3)
    assert tuner.threads == 2
    run(tuner, {1: 100, 2: 10, 4: 10}, 1)
    assert tuner.threads == 4
    run(tuner, {1: 100, 2: 10, 4: 10}, 1)
    assert tuner.threads == 1


@pytest.mark.usefixtures("four_cores")
def test_it_follows_the_machine() -> None:
    tuner = ThreadTuner(lambda _: None)
    run(tuner, {1: 73, 2: 50, 4: 40}, 9)
    assert tuner.threads == 1
    run(tuner, {1: 100, 2: 190, 4: 370}, FIRST_PAUSE + 9)
    assert tuner.threads == 4


@pytest.mark.usefixtures("four_cores")
def test_looks_get_rarer_while_the_answer_stays() -> None:
    looks: list[int] = []
    steps = [0]
    tuner = ThreadTuner(lambda count: looks.append(steps[0]) if count == 1 else None)
    for number in range(3000):
        steps[0] = number
        run(tuner, {1: 1, 2: 2, 4: 4}, 1)
    pauses = [later - earlier for earlier, later in pairwise(looks)]
    assert pauses[0] < pauses[1] < pauses[2]
    assert max(pauses) <= LONGEST_PAUSE + 9
    assert pauses[-1] >= LONGEST_PAUSE


def test_a_step_without_work_is_ignored() -> None:
    tuner = ThreadTuner(lambda _: None)
    for _ in range(10):
        tuner.step(1.0, 0)


def test_one_core_has_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    seen: list[int] = []
    run(ThreadTuner(seen.append), {1: 1.0}, 500)
    assert seen == [1]
