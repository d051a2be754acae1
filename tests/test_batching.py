"""Order, steps and padding: each sample once an epoch, nothing lost, the gradient that of the unpadded whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import random_rows, save_tiny_model
from transformers import AutoModelForCausalLM

from ssd_lite.engines.sampling.targets import Targets
from ssd_lite.engines.training.batching import (
    BatchShape,
    MicroBatches,
    TrainingRow,
    collate,
    plan_batches,
    sample_order,
)
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.peft_model import build_model
from ssd_lite.recipe import Train


def test_order_is_a_permutation_an_epoch_fixed_by_the_seed() -> None:
    order = sample_order(10, 2.5, None, 4, seed=3)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == sample_order(10, 2.5, None, 4, seed=3)
    assert order != sample_order(10, 2.5, None, 4, seed=4)


def test_max_steps_overrides_the_epochs() -> None:
    assert len(sample_order(10, 1.0, 7, 4, seed=0)) == 28


def test_each_step_holds_its_samples_longest_first() -> None:
    rows = random_rows(23)
    order = sample_order(23, 1.0, None, 8, seed=0)
    plan = plan_batches(rows, order, BatchShape(2, 4))
    seen = [row for part in plan for row in part.rows]
    assert sorted(seen) == list(range(23))
    assert sorted(seen[:8]) == sorted(order[:8])
    lengths = [len(rows[row]) for row in seen[:8]]
    assert lengths == sorted(lengths, reverse=True)
    assert {part.step_tokens for part in plan[:4]} == {sum(len(rows[row].completion_ids) for row in order[:8])}
    assert len(plan) == 4 + 4 + 4  # 8, 8 and 7 samples by twos


def test_processes_get_equal_numbers_of_micro_batches() -> None:
    plan = plan_batches(random_rows(13), list(range(13)), BatchShape(2, 2, processes=2))
    assert len(plan) % 2 == 0
    assert sorted(row for part in plan for row in part.rows) == list(range(13))
    empty = collate([], 5)
    assert empty["target_ids"].shape == (0, 1)


def test_collate_trains_the_completion_and_nothing_else() -> None:
    rows = [TrainingRow((5, 6, 7), (8, 9)), TrainingRow((4,), (3, 2, 1, 2))]
    batch = collate(rows, 6)
    flat = batch["input_ids"].flatten()
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 2, 1, 2]]
    assert flat[batch["positions"] + 1].tolist() == [8, 9, 3, 2, 1, 2]
    assert flat[batch["positions"]].tolist() == [7, 8, 4, 3, 2, 1]
    assert batch["target_ids"][:, 0].tolist() == [8, 9, 3, 2, 1, 2]
    assert batch["input_tokens"] == 10


def test_soft_targets_stand_beside_hard_ones() -> None:
    targets = Targets(
        np.array([2, 1], np.uint16), np.array([8, 1, 9], np.uint32), np.array([0.75, 0.25, 1], np.float32)
    )
    soft = TrainingRow((5,), (8, 9), targets, soft=True)
    batch = collate([TrainingRow((4,), (3,)), soft], 3)
    assert batch["target_ids"].tolist() == [[3, 0], [8, 1], [9, 0]]
    assert batch["target_probs"].tolist() == [[1, 0], [0.75, 0.25], [1, 0]]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_of_a_step_is_that_of_one_unpadded_computation(tmp_path: Path, method: str) -> None:
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=method == "full")
    settings = Train(method=method, gradient_checkpointing=False, lora_r=4)  # type: ignore[arg-type]
    model = LossModel(build_model(folder, settings))
    torch.manual_seed(1)
    with torch.no_grad():  # B starts at zero, where A's gradient would vanish
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.1)
    rows = random_rows(11)
    data = MicroBatches(rows, plan_batches(rows, list(range(11)), BatchShape(3, 4)))
    for index in range(len(data)):
        batch = data[index]
        batch.pop("input_tokens")
        model(**batch)["loss"].backward()
    ours = {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}
    model.zero_grad()
    causal = model.network.get_base_model() if method == "lora" else model.network  # type: ignore[operator]
    total, tokens = torch.zeros(()), 0
    for row in rows:
        logits = causal(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
        trained = logits[len(row.prompt_ids) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(trained, torch.tensor(row.completion_ids), reduction="sum")
        tokens += len(row.completion_ids)
    (total / tokens).backward()
    checked = 0
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            assert tensor.grad is not None
            assert (ours[name] - tensor.grad).abs().max() <= 1e-6 * max(1.0, tensor.grad.abs().max().item())
            checked += 1
    assert checked > 10


def test_the_wrapped_model_has_the_logits_of_the_saved_one(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model = LossModel(build_model(folder, Train(gradient_checkpointing=False, lora_r=4)))
    row = random_rows(1)[0]
    batch = collate([row], 1)
    batch.pop("input_tokens")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    logits = plain(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0].log_softmax(-1)
    wanted = sum(-logits[len(row.prompt_ids) - 1 + at, token].item() for at, token in enumerate(row.completion_ids))
    assert model(**batch)["loss"].item() == pytest.approx(wanted, rel=1e-5)
