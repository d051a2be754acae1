"""Every optimiser setting of a recipe reaches the Trainer, its optimiser and the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import random_rows, save_tiny_model
from transformers import Trainer, TrainingArguments

from ssd_lite.engines.training import trainer
from ssd_lite.engines.training.peft_model import BaseModel
from ssd_lite.engines.training.resumable_trainer import Schedule
from ssd_lite.journal import read_records
from ssd_lite.recipe import Train

# Nowhere a default of ours or of transformers.
SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "weight_decay": 0.03,
    "adam_beta1": 0.8,
    "adam_beta2": 0.93,
    "max_grad_norm": 0.7,
    "gradient_accumulation_steps": 2,
    "save_steps": 7,
    "seed": 5,
}
OPTIMISERS = {
    "adamw_torch": "torch.optim.adamw.AdamW",
    "adamw_torch_fused": "torch.optim.adamw.AdamW",
    "adamw_8bit": "bitsandbytes.optim.adamw.AdamW",
    "paged_adamw_8bit": "bitsandbytes.optim.adamw.AdamW",
}


def files(folder: Path) -> trainer.TrainingFiles:
    def say(line: str) -> None:
        pass

    return trainer.TrainingFiles(folder / "checkpoints", folder / "metrics.jsonl", folder / "adapter", say)


def go(folder: Path, **changes: Any) -> dict[str, Any]:
    """Train a few steps in `folder`, whose parent holds the model."""
    folder.mkdir()
    settings = Train(**({"gradient_checkpointing": False, "lora_r": 4, "num_train_epochs": 2.0} | SETTINGS | changes))
    base = BaseModel("tiny", None, "hash")
    return trainer.train_model(random_rows(4), folder.parent / "model", base, files(folder), settings, threads=1)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model")
    return tmp_path


def test_every_setting_reaches_the_arguments(tmp_path: Path) -> None:
    arguments = TrainingArguments(**trainer.argument_values(files(tmp_path), Train(**SETTINGS)))
    assert {name: getattr(arguments, name) for name in SETTINGS} == SETTINGS
    # Order, passes and the learning rate's course are ours: the Trainer's own would come on top.
    assert (arguments.num_train_epochs, arguments.lr_scheduler_type, arguments.warmup_steps) == (1, "constant", 0)


@pytest.mark.parametrize("optim", OPTIMISERS)
def test_every_optimiser_is_the_one_that_was_named(tmp_path: Path, optim: Any) -> None:
    if "8bit" in optim:
        pytest.importorskip("bitsandbytes")
    arguments = TrainingArguments(**trainer.argument_values(files(tmp_path), Train(optim=optim, **SETTINGS)))
    assert arguments.optim == optim
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert f"{kind.__module__}.{kind.__name__}" == OPTIMISERS[optim]
    assert bool(options.get("fused")) is (optim == "adamw_torch_fused")
    assert (options.get("optim_bits") == 8) is ("8bit" in optim)
    assert bool(options.get("is_paged")) is optim.startswith("paged")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_setting_reaches_the_optimiser(place: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    made: list[trainer.SampleTrainer] = []
    run = trainer._run
    monkeypatch.setattr(trainer, "_run", lambda one, resume: (made.append(one), run(one, resume)))
    go(place / "run", method=method, optim="adamw_torch_fused")
    (one,) = made
    optimiser: Any = one.optimizer
    plain = getattr(optimiser, "optimizer", optimiser)
    assert isinstance(plain, torch.optim.AdamW)
    decay = {}
    for group in plain.param_groups:
        assert (tuple(group["betas"]), group["initial_lr"], group["fused"]) == ((0.8, 0.93), 3e-3, True)
        decay |= {id(tensor): group["weight_decay"] for tensor in group["params"]}
    trained = {name: tensor for name, tensor in one.model.named_parameters() if tensor.requires_grad}
    assert trained
    for name, tensor in trained.items():  # norms are not drawn to zero, as everywhere with AdamW
        assert decay[id(tensor)] == (0.0 if "norm" in name else 0.03), name


def test_the_learning_rate_follows_the_recipe(place: Path) -> None:
    go(place / "run", num_train_epochs=5.0, warmup_ratio=0.4, min_lr_rate=0.3)
    steps = read_records(place / "run" / "metrics.jsonl")
    schedule = Schedule(len(steps), 4, 0.3)
    assert len(steps) == 10
    assert [step["learning_rate"] for step in steps] == pytest.approx([3e-3 * schedule.share(n) for n in range(10)])


def test_clipping_acts(place: Path) -> None:
    """AdamW undoes the size of a gradient, but not where it is small beside its epsilon of 1e-8."""
    free = go(place / "free", max_grad_norm=1e9)
    clipped = go(place / "clipped", max_grad_norm=1e-11)
    assert clipped["change_norm"] < 0.05 * free["change_norm"]
    norms = [step["grad_norm"] for step in read_records(place / "clipped" / "metrics.jsonl")]
    assert min(norms) > 1e-3, "the log keeps the norm before clipping"


def test_weight_decay_acts(place: Path) -> None:
    """By the factor 1 - rate x decay a step, beside a gradient that is clipped to nothing."""
    from safetensors.torch import load_file

    sizes = {}
    for decay in (0.0, 50.0):
        folder = place / f"decay-{decay}"
        go(folder, max_grad_norm=1e-12, weight_decay=decay, warmup_ratio=0.0, min_lr_rate=1.0)
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        sizes[decay] = sum(t.square().sum().item() for name, t in saved.items() if "lora_A" in name) ** 0.5
    steps = len(read_records(place / "decay-0.0" / "metrics.jsonl"))
    assert sizes[50.0] / sizes[0.0] == pytest.approx((1 - 3e-3 * 50) ** steps, rel=1e-2)
