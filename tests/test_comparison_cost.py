"""What an arm cost: tokens and seconds of every process, its share of samples others drew, and what it learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssd_lite.recipe_file import load_recipe
from ssd_lite.stages.comparison.cost import cost_of
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.plan import trained_runs


def processes(**seconds: float) -> dict[str, dict[str, float]]:
    return {stage: {"count": 2, "seconds": value, "peak_rss_bytes": 1} for stage, value in seconds.items()}


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    settings = ["compare.arms=[ssd,rft,grpo]", "compare.best=[]", "compare.seeds=[0,1]"]
    folder = ComparisonFolder.create(tmp_path / "c", load_recipe("quickstart", settings))
    for trained in trained_runs(folder.recipe):
        run = folder.run(trained)
        if trained.arm == "grpo":
            run.finish("train", {"steps": 3, "tokens_trained": 5000, "tokens_read": 9000, "completions": 96}, 100.0)
            run.note("processes", processes(train=4000.0))
            continue
        rows = 79 + trained.seed if trained.arm == "ssd" else 30
        run.finish("curate", {"rows": rows}, 5.0)
        run.finish("train", {"tokens_read": 800, "steps": rows // 8}, 10.0)
        if trained.arm == "ssd":
            run.finish("sample", {"tokens": 700}, 10.0)
            run.note("processes", processes(sample=300.0, curate=20.0, train=900.0))
        else:
            run.note("samples_of", f"ssd-{trained.seed}")
            run.finish("sample", {"tokens": 700}, 0.1)
            run.note("processes", processes(sample=1.0, curate=50.0, train=400.0))
    return folder


def test_seconds_are_those_of_every_process_and_curating_counts(folder: ComparisonFolder) -> None:
    runs = trained_runs(folder.recipe)
    ssd = cost_of(folder, "ssd", runs)
    assert ssd == {
        "tokens_sampled": 1400,
        "tokens_trained": 1600,
        "seconds": pytest.approx(2 * (300 + 20 + 900)),
        "rows": [79, 80],
        "steps": [9, 10],
        "tokens_answered": 0,
        "seconds_answered": 0.0,
    }
    # Shared samples cost each arm that uses them what they took.
    assert cost_of(folder, "rft", runs)["seconds"] == pytest.approx(2 * (300 + 50 + 400))
    base = cost_of(folder, "base", runs)
    assert (base["seconds"], base["rows"], base["steps"]) == (0.0, [], [])


def test_what_grpo_draws_while_it_trains_is_counted(folder: ComparisonFolder) -> None:
    grpo = cost_of(folder, "grpo", trained_runs(folder.recipe))
    assert (grpo["tokens_sampled"], grpo["tokens_trained"]) == (10000, 18000)
    assert (grpo["seconds"], grpo["rows"], grpo["steps"]) == (8000.0, [96, 96], [3, 3])


def test_a_stage_that_was_run_by_hand_has_its_own_seconds(folder: ComparisonFolder) -> None:
    runs = trained_runs(folder.recipe)
    for trained in runs:
        folder.run(trained).note("processes", {})
    assert cost_of(folder, "grpo", runs)["seconds"] == pytest.approx(200.0)


def test_evaluations_count_with_the_search_for_a_decoding(folder: ComparisonFolder) -> None:
    """Dev and test split, of every seed; what is not whole does not count."""
    needed = ("per_problem", "pass_at_k", "problems", "grader", "engine", "gguf_type", "model_sha256", "n")
    for number, model in enumerate(["base", "base", "ssd-0", "ssd-1", "rft-0"]):
        place = folder.path / "arms" / f"{model}-{number}"
        place.mkdir(parents=True)
        report = {**dict.fromkeys(needed), "model": model, "tokens": 10**number, "seconds": number + 0.5}
        (place / "report.json").write_text(json.dumps(report))
    (folder.path / "arms" / "base-0" / "report.json").with_name("more").mkdir()
    (place / "report.json").write_text("{")
    found = {model: cost_of(folder, model, trained_runs(folder.recipe)) for model in ("base", "ssd", "rft")}
    assert {model: cost["tokens_answered"] for model, cost in found.items()} == {"base": 11, "ssd": 1100, "rft": 0}
    assert {model: cost["seconds_answered"] for model, cost in found.items()} == {"base": 2.0, "ssd": 6.0, "rft": 0.0}
