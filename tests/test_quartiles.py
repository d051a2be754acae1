"""Quartiles of the base's pass rate: chosen by half of its samples, judged by the other half."""

from __future__ import annotations

import numpy as np
import pytest

from ssd_lite.records import Grade
from ssd_lite.stages.evaluation.quartiles import by_quartile
from ssd_lite.stages.pages.quartile_section import quartile_section


def grades(rates: np.ndarray, n: int, seed: int) -> list[Grade]:
    passed = np.random.default_rng(seed).random((len(rates), n)) < rates[:, None]
    return [
        Grade(f"p{i:03}", index, "pass" if passed[i, index] else "wrong_answer")
        for i in range(len(rates))
        for index in range(n)
    ]


def test_equal_models_show_no_gain_in_the_hardest_quartile() -> None:
    """The trap: chosen and judged by the same samples, the hardest quartile of two equal models shows a large gain."""
    rates = np.full(400, 0.5)
    base, tuned = grades(rates, 4, 1), grades(rates, 4, 2)
    rows = by_quartile(base, tuned, 0)
    assert [row["quartile"] for row in rows] == ["hardest", "harder", "easier", "easiest"]
    assert all(row["difference"]["low"] < 0 < row["difference"]["high"] for row in rows)
    assert sum(row["count"] for row in rows) == 400


def test_a_gain_on_hard_problems_alone_stands_there_alone() -> None:
    hard = np.arange(200) < 50
    rows = by_quartile(grades(np.where(hard, 0.02, 0.9), 6, 1), grades(np.where(hard, 0.7, 0.9), 6, 2), 0)
    assert rows[0]["difference"]["low"] > 0.5
    assert rows[0]["base"] < 0.1 < rows[0]["tuned"]
    assert all(abs(row["difference"]["mean"]) < 0.1 for row in rows[1:])
    page = quartile_section(rows)
    assert "hardest" in page
    assert "By quartile of the base" in page


@pytest.mark.parametrize(("problems", "n"), [(7, 4), (40, 1)])
def test_too_little_for_quartiles(problems: int, n: int) -> None:
    rates = np.full(problems, 0.5)
    assert by_quartile(grades(rates, n, 1), grades(rates, n, 2), 0) == []
    assert quartile_section([]) == ""
