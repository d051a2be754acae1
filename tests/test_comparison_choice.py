"""Decodings are chosen on the dev split and reported on the others, each row at the decoding its name says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.recipe_file import load_recipe
from ssd_lite.stages import compare as stage
from ssd_lite.stages.child import Ended
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.plan import ArmOrder, completions, read_order, trained_runs

SETTINGS = (
    "evaluate.base.temperature=0.6",
    "evaluate.tuned.temperature=0.9",
    "sample.temperature=1.1",
    "evaluate.k=[1]",
    "compare.grid={temperature: [0.6], top_p: [0.8], min_p: [0.0]}",
    "compare.arms=[ssd]",
    "compare.best=[ssd]",
    "compare.extra_sets=[humaneval]",
)
# Problems solved of ten at the temperatures 0.6, 0.9 and 1.1. Whoever looked at test would choose 0.6.
SOLVED = {
    ("base", "dev"): (2, 5, 3),
    ("base", "test"): (6, 1, 4),
    ("base", "humaneval"): (9, 2, 0),
    ("ssd-0", "dev"): (1, 2, 7),
    ("ssd-0", "test"): (8, 3, 5),
    ("ssd-0", "humaneval"): (7, 0, 4),
}
TEMPERATURES = (0.6, 0.9, 1.1)


def report(order: ArmOrder, n: int) -> dict[str, Any]:
    """What evaluating an arm would have written."""
    solved = SOLVED[order.model, order.problems][TEMPERATURES.index(order.decoding.temperature)]
    rows = [{"problem_id": f"p{i}", "difficulty": None, "n": n, "passed": n if i < solved else 0} for i in range(10)]
    rates = {"no_code_rate": 0.0, "cap_rate": 0.0, "mean_tokens": 9.0, "hedging_per_1000_words": 0.0}
    about = {"name": order.problems, "count": 10, "sha256": "0" * 64, "note": "", "golden": "none"}
    return {
        "per_problem": rows,
        "n": n,
        "pass_at_k": {"1": {"mean": solved / 10}},
        "tokens": 9 * n,
        **rates,
        "problems": about,
        "grader": {"tier": "bubblewrap"},
        "engine": "hf",
        "gguf_type": None,
        "model": order.model,
        "model_sha256": "1" * 64,
        "seconds": 1.0,
    }


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[ArmOrder]]:
    """The result of a whole comparison, and what was evaluated for it; training and answering take no time."""
    folder = ComparisonFolder.create(tmp_path / "c", load_recipe("quickstart", SETTINGS))
    for trained in trained_runs(folder.recipe):
        folder.run(trained)
    evaluated: list[ArmOrder] = []

    def answer(arguments: Sequence[str], *rest: Any) -> Ended:
        assert arguments[:2] == ["compare", str(folder.path)]
        orders = [read_order(word) for word in arguments[2:] if word != "--arm"]
        for order in orders:
            file = folder.arm(order).report
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(report(order, completions(folder.recipe, order))))
        evaluated.extend(orders)
        return Ended(0, 1.0, 1, False)

    monkeypatch.setattr(stage, "run_command", answer)
    monkeypatch.setattr(stage, "_settled", lambda *_: {})
    monkeypatch.setattr(stage.Work, "train", lambda *_: None)
    return stage.compare(folder, say=lambda line: None), evaluated


def test_decodings_are_chosen_on_dev_whatever_test_says(compared: tuple[dict[str, Any], list[ArmOrder]]) -> None:
    result, _ = compared
    assert {arm: law["temperature"] for arm, law in result["chosen"].items()} == {"base": 0.9, "ssd": 1.1}
    for arm, model in (("base", "base"), ("ssd", "ssd-0")):
        tried = {one["decoding"]["temperature"]: one["pass_at_1"] for one in result["tried"][arm]}
        assert tried == {t: [n / 10] for t, n in zip(TEMPERATURES, SOLVED[model, "dev"], strict=True)}


@pytest.mark.parametrize("problems", ["test", "humaneval"])
def test_every_row_is_what_its_decoding_gave_on_the_set(
    compared: tuple[dict[str, Any], list[ArmOrder]], problems: str
) -> None:
    result, _ = compared
    rows = result["rows"] if problems == "test" else result["extra"][problems]
    temperatures = {
        "base@matched": 0.6,
        "base@training": 1.1,
        "base@best": 0.9,
        "ssd@matched": 0.6,
        "ssd@best": 1.1,
    }
    assert {row["key"]: row["decoding"]["temperature"] for row in rows} == temperatures
    for row in rows:
        model = "base" if row["model"] == "base" else "ssd-0"
        solved = SOLVED[model, problems][TEMPERATURES.index(temperatures[row["key"]])]
        assert row["pass_at_k"]["1"]["mean"] == pytest.approx(solved / 10), row["key"]


def test_test_is_answered_at_no_decoding_but_the_rows(compared: tuple[dict[str, Any], list[ArmOrder]]) -> None:
    """All are tried on dev; on the others nothing is there to choose from. Nothing is answered twice."""
    _, evaluated = compared
    assert len(evaluated) == len(set(evaluated))
    asked = {(order.model, order.problems): set[float]() for order in evaluated}
    for order in evaluated:
        asked[order.model, order.problems].add(order.decoding.temperature)
    everything, chosen = {0.6, 0.9, 1.1}, {0.6, 1.1}
    expected = {("base", name): everything for name in ("dev", "test", "humaneval")}
    expected |= {("ssd-0", "dev"): everything, ("ssd-0", "test"): chosen, ("ssd-0", "humaneval"): chosen}
    assert asked == expected
