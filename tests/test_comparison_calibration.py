"""Does the verdict keep its promises? Comparisons are simulated: how often it claims, with an effect and without.

`python tests/test_comparison_calibration.py` prints the table that stands in docs/compare.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ssd_lite.grading.statistics import Interval, smallest_of_interval
from ssd_lite.recipe_file import load_recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.stages.comparison.plan import BASE, ArmOrder, completions
from ssd_lite.stages.comparison.rows import MATCHED, Row, best_decoding, differences

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


def chosen_gap(*, seeds: int, base_n: int, count: int = 1500) -> tuple[float, float]:
    """Mean and standard error of how much better SSD's chosen decoding truly is than the base's, without an effect.

    Nine decodings differ by 8 points (standard deviation) and do the same to both models. SSD chooses by 3 completions
    of each seed on 37 dev problems, the base by `base_n`.
    """
    draw = np.random.default_rng(0)
    laws = [Decoding(temperature=(number + 1) / 10) for number in range(9)]
    gaps = np.empty(count)
    for number in range(count):
        rate, shift = draw.beta(0.5, 0.9, 37), draw.normal(0, 0.08, 9)
        room = rate * (1 - rate)
        rates = np.clip(rate + shift[:, None] * room / room.mean(), 0, 1)

        def best(n: int, models: int, rates: Any = rates) -> int:
            seen = draw.binomial(n, np.broadcast_to(rates, (models, *rates.shape))).mean(axis=2) / n
            return laws.index(best_decoding({d: [rated(m) for m in seen[:, i]] for i, d in enumerate(laws)}))

        gaps[number] = shift[best(3, seeds)] - shift[best(base_n, 1)]
    return float(gaps.mean()), float(gaps.std() / count**0.5)


def rated(rate: float) -> dict[str, Any]:
    return {"pass_at_k": {"1": {"mean": rate}}}


def test_a_base_that_chooses_as_well_informed_loses_nothing_by_the_choice() -> None:
    recipe = load_recipe("quickstart", ["compare.seeds=[0,1,2,3,4]"])
    n = completions(recipe, ArmOrder(BASE, T6, "dev"))
    mean, error = chosen_gap(seeds=5, base_n=n)
    assert abs(mean) < 3 * error
    mean, error = chosen_gap(seeds=5, base_n=recipe.compare.dev_n)
    assert mean > 4 * error, "what choosing with fewer completions would cost the base"


if __name__ == "__main__":
    print("problems  seeds  claims without an effect  named size  claims at that size")
    for problems, seeds in ((59, 1), (59, 3), (164, 1), (164, 3)):
        gain, loss, named = simulated(0.0, problems=problems, seeds=seeds, n=3, count=400)
        at_it = simulated(named, problems=problems, seeds=seeds, n=3, count=400)[0]
        print(f"{problems:8}  {seeds:5}  {100 * (gain + loss):22.1f} %  {100 * named:10.1f}  {100 * at_it:17.1f} %")
    print("\nspread 8 points: SSD's chosen decoding beyond the base's, in points")
    for seeds in (3, 5):
        for base_n in (3, 3 * seeds):
            mean, error = chosen_gap(seeds=seeds, base_n=base_n, count=4000)
            print(f"{seeds} seeds, base {base_n:2} completions: {100 * mean:+.2f} ± {100 * error:.2f}")
