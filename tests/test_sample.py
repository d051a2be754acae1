"""What the stage that samples warns of: samples of another model, and a law that cuts nothing off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssd_lite.recipe import Recipe, Sample
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.sample import _warnings, sample

OPEN: dict[str, Any] = {"temperature": 1.6, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def warnings(teacher: str | None = None, **law: Any) -> list[str]:
    return _warnings(Sample(**(OPEN | law)).settings(8), teacher)


def test_a_law_that_cuts_nothing_is_warned_of_and_one_that_does_is_not() -> None:
    (line,) = warnings()
    assert line.startswith("Without truncation SSD ideally only changes the temperature")
    assert "sample.top_k or sample.top_p" in line
    for law in ({"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}):
        assert warnings(**law) == []


def test_samples_of_another_model_are_said_to_be_no_ssd() -> None:
    (line,) = warnings("other/model")
    assert "other/model" in line
    assert "distillation, not SSD" in line


@pytest.mark.parametrize(("law", "warned"), [({}, True), ({"top_k": 20}, False)])
def test_the_warning_is_in_the_summary_and_stays(tmp_path: Path, law: dict[str, Any], warned: bool) -> None:
    pytest.importorskip("transformers")
    from tiny_models import save_tiny

    base = save_tiny(tmp_path / "base")
    more = {**OPEN, **law, "engine": "hf", "max_new_tokens": 2, "batch_size": 2}
    value = {
        "name": "r",
        "threads": 1,
        "model": {"name": str(base)},
        "problems": {"train_limit": 2},
        "sample": more,
        "export": {"types": []},
    }
    run = RunFolder.create(tmp_path / "run", Recipe.model_validate(value))
    summary = sample(run)
    assert summary["samples"] == 2
    assert any("Without truncation" in line for line in summary["warnings"]) is warned
    noted = run.done("sample")
    assert noted is not None
    assert noted["warnings"] == summary["warnings"]
