"""The clock of a training: a checkpoint each CHECKPOINT_PERIOD_S, however far apart the recipe's stand."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from ssd_lite.engines.training import step_watch
from ssd_lite.engines.training.step_watch import CHECKPOINT_PERIOD_S, StepWatch

unused: Any = None


def test_the_clock_asks_for_a_checkpoint_and_starts_again_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(step_watch, "time", types.SimpleNamespace(monotonic=lambda: now))
    watch = StepWatch(unused, unused, unused, None, None)
    state = TrainerState(max_steps=100)

    def asked(after_s: float) -> bool:
        nonlocal now
        now += after_s
        control = TrainerControl()
        watch.on_step_end(None, state, control)
        assert not control.should_training_stop
        return control.should_save

    assert not asked(CHECKPOINT_PERIOD_S - 1)
    assert asked(2)
    assert asked(1), "until it is saved"
    watch.on_save(None, state, TrainerControl())
    assert not asked(CHECKPOINT_PERIOD_S - 1)
    assert asked(2)
    watch.on_save(None, state, TrainerControl())
    assert not asked(1)


@pytest.mark.parametrize(("period_s", "kept"), [(0.0, {"checkpoint-2", "checkpoint-3"}), (600.0, {"checkpoint-3"})])
def test_a_training_saves_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period_s: float, kept: set[str]
) -> None:
    """save_steps is beyond the end, where one is always saved."""
    from tiny_model import random_rows, save_tiny_model

    from ssd_lite.engines.training.peft_model import BaseModel
    from ssd_lite.engines.training.trainer import TrainingFiles, train_model
    from ssd_lite.recipe import Train

    assert CHECKPOINT_PERIOD_S == 600
    monkeypatch.setattr(step_watch, "CHECKPOINT_PERIOD_S", period_s)
    folder = save_tiny_model(tmp_path / "model")
    files = TrainingFiles(tmp_path / "checkpoints", tmp_path / "metrics.jsonl", tmp_path / "adapter", lambda line: None)
    settings = Train(max_steps=3, save_steps=1000, gradient_accumulation_steps=1, learning_rate=1e-3, lora_r=4)
    train_model(random_rows(3), folder, BaseModel("tiny", None, "hash"), files, settings, threads=1)
    assert {path.name for path in files.checkpoints.iterdir()} == kept
