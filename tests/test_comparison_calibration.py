"""Does the verdict keep its promises? Comparisons are simulated: how often it claims, with an effect and without.

`python tests/test_comparison_calibration.py` prints the table that stands in docs/compare.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ssd_lite.grading.statistics import Interval, smallest_of_interval
from ssd_lite.recipe_section import Decoding
from ssd_lite.stages.comparison_rows import MATCHED, Row, differences

T6 = Decoding(temperature=0.6)


def report(passed: Sequence[int], n: int) -> dict[str, Any]:
    rows = [{"problem_id": str(i), "difficulty": None, "n": n, "passed": int(c)} for i, c in enumerate(passed)]
    return {"per_problem": rows, "n": n, "pass_at_k": {"1": {"mean": float(np.mean(passed)) / n}}}


def simulated(effect: float, *, problems: int, seeds: int, n: int, count: int) -> tuple[float, float, float]:
    """Shares of claimed gains and losses among `count` comparisons, and the mean smallest difference they name.

    A problem's pass rate is drawn from Beta(0.5, 0.9), many hard and some easy ones, as a small model has them;
    training moves it most where there is room, by `effect` on average. All arms draw on their own.
    """
    draw = np.random.default_rng(0)
    gains = losses = 0
    smallest = []
    for _ in range(count):
        rate = draw.beta(0.5, 0.9, problems)
        room = rate * (1 - rate)
        tuned = np.clip(rate + effect * room / room.mean(), 0, 1)
        base = Row("base", MATCHED, T6, [report(draw.binomial(n, rate), n)])
        ssd = Row("ssd", MATCHED, T6, [report(draw.binomial(n, tuned), n) for _ in range(seeds)])
        found = differences(ssd, base, 1)["1"]
        gains += found["low"] > 0
        losses += found["high"] < 0
        smallest.append(found["smallest"])
    return gains / count, losses / count, float(np.mean(smallest))


def test_the_width_of_an_interval_names_the_difference_it_could_show() -> None:
    one_error = Interval(0.0, -1.959964, 1.959964)
    assert smallest_of_interval(one_error) == pytest.approx(2.801585)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_without_an_effect_a_claim_is_rare_and_at_the_named_size_it_is_the_rule(seeds: int) -> None:
    gain, loss, named = simulated(0.0, problems=59, seeds=seeds, n=3, count=120)
    assert gain + loss <= 0.10  # 5 % is promised; 12 of 120 would be 2.5 standard errors above
    found = simulated(named, problems=59, seeds=seeds, n=3, count=120)
    assert found[0] >= 0.68  # 80 % is promised; below 0.68 would be 3.3 standard errors
    assert found[1] == 0.0


if __name__ == "__main__":
    print("problems  seeds  claims without an effect  named size  claims at that size")
    for problems, seeds in ((59, 1), (59, 3), (164, 1), (164, 3)):
        gain, loss, named = simulated(0.0, problems=problems, seeds=seeds, n=3, count=400)
        at_it = simulated(named, problems=problems, seeds=seeds, n=3, count=400)[0]
        print(f"{problems:8}  {seeds:5}  {100 * (gain + loss):22.1f} %  {100 * named:10.1f}  {100 * at_it:17.1f} %")
