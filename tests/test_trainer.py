"""Training end to end on a tiny model: it learns, logs each step once, stops, resumes to the same bits, and refuses."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_model import random_rows, save_tiny_model
from transformers import TrainingArguments

from ssd_lite import interrupt
from ssd_lite.atomic import is_whole
from ssd_lite.engines.sampling.targets import Targets
from ssd_lite.engines.training import resumable_trainer, sample_trainer, trainer
from ssd_lite.engines.training.batching import TrainingRow
from ssd_lite.engines.training.checkpoints import check_writable, newest_whole
from ssd_lite.engines.training.peft_model import BaseModel
from ssd_lite.engines.training.resumable_trainer import Schedule
from ssd_lite.engines.training.sample_trainer import SampleTrainer
from ssd_lite.engines.training.trainer import TrainingFiles, take_one_card, train_model
from ssd_lite.errors import Stopped, UserError
from ssd_lite.journal import read_records
from ssd_lite.recipe import Train


def small(**changes: Any) -> Train:
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2.0,
        "save_steps": 2,
        "learning_rate": 3e-3,
        "gradient_checkpointing": False,
        "lora_r": 4,
        "lora_alpha": 8,
    }
    return Train(**(values | changes))  # type: ignore[arg-type]


def go(folder: Path, settings: Train, rows: list[TrainingRow] | None = None, **options: Any) -> dict[str, Any]:
    """Train in `folder`, whose parent holds the model; log lines go to log.txt."""
    folder.mkdir(exist_ok=True)

    def say(line: str) -> None:
        with open(folder / "log.txt", "a") as file:
            file.write(line + "\n")

    files = TrainingFiles(folder / "checkpoints", folder / "metrics.jsonl", folder / "adapter", say)
    return train_model(
        random_rows(22) if rows is None else rows,
        folder.parent / "model",
        BaseModel("tiny", None, "hash"),
        files,
        settings,
        **({"threads": 1} | options),
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model")
    return tmp_path


def test_it_learns_and_logs_every_step_once(place: Path) -> None:
    rows = random_rows(6)
    summary = go(place / "run", small(num_train_epochs=20.0, learning_rate=2e-2), rows)
    steps = read_records(place / "run" / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, summary["steps"] + 1))
    assert summary["steps"] == 30
    assert summary["final_loss"] < 0.9 * summary["first_loss"]
    assert set(steps[0]) == {
        "step", "loss", "grad_norm", "learning_rate", "tokens", "input_tokens", "tokens_per_s", "seconds"
    }  # fmt: skip
    assert summary["tokens_trained"] == 20 * sum(len(row.completion_ids) for row in rows)
    assert summary["tokens_read"] == 20 * sum(len(row) for row in rows)
    assert summary["change_norm"] > 0
    assert is_whole(place / "run" / "adapter")
    assert len(list((place / "run" / "checkpoints").glob("checkpoint-*"))) == 2


def test_the_first_loss_is_the_base_models_own(place: Path) -> None:
    from transformers import AutoModelForCausalLM

    rows = random_rows(4)
    summary = go(place / "run", small(num_train_epochs=1.0), rows)
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    total = 0.0
    for row in rows:
        logits = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(row.completion_ids), reduction="sum").item()
    assert summary["first_loss"] == pytest.approx(total / sum(len(row.completion_ids) for row in rows), rel=1e-5)


def test_full_fine_tuning_writes_the_checkpoints_names(place: Path) -> None:
    summary = go(place / "run", small(method="full", learning_rate=1e-3))
    saved, base = (
        load_file(place / "run" / "adapter" / "model.safetensors"),
        load_file(place / "model/model.safetensors"),
    )
    assert saved.keys() == base.keys()
    squares = sum((saved[name] - base[name]).double().square().sum().item() for name in base)
    assert summary["change_norm"] == pytest.approx(squares**0.5, rel=1e-4)


@pytest.mark.parametrize("soft", [True, False])
def test_kept_laws_log_the_terms_which_add_up_to_the_expected_loss(place: Path, soft: bool) -> None:
    import numpy as np

    rows = []
    for row in random_rows(8):
        count = len(row.completion_ids)
        ids = np.stack([np.array(row.completion_ids), (np.array(row.completion_ids) + 1) % 300], axis=1)
        probs = np.tile(np.array([0.7, 0.3], np.float32), count)
        targets = Targets(np.full(count, 2, np.uint16), ids.flatten().astype(np.uint32), probs)
        rows.append(TrainingRow(row.prompt_ids, row.completion_ids, targets, soft=soft))
    go(place / "run", small(), rows, temperature=1.6)
    for step in read_records(place / "run" / "metrics.jsonl"):
        parts = sum(step[name] for name in ("support_compression", "reshaping", "alignment", "target_entropy"))
        assert parts == pytest.approx(step["expected_loss"], rel=1e-5)
        assert (step["expected_loss"] == pytest.approx(step["loss"], rel=1e-5)) is soft
        assert 0 < step["kept"] < 1


def test_a_wish_to_stop_is_exit_75(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_requested", True)
    with pytest.raises(Stopped, match="step 1 of 11") as stopped:
        go(place / "run", small())
    assert stopped.value.exit_code == 75
    monkeypatch.setattr(interrupt, "_requested", False)
    assert go(place / "run", small())["steps"] == 11


def test_half_written_checkpoints_are_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(place / "run", small())
    checkpoints = place / "run" / "checkpoints"
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-11"
    (checkpoints / "checkpoint-11" / "DONE.json").unlink()
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-10"
    with open(checkpoints / "checkpoint-10" / "optimizer.pt", "ab") as file:
        file.truncate(10)
    assert newest_whole(checkpoints) is None


def test_a_replayed_step_with_another_loss_is_said(place: Path) -> None:
    go(place / "one", small(max_steps=3))
    lines = read_records(place / "one" / "metrics.jsonl")
    lines[1]["loss"] *= 1.01
    from ssd_lite.journal import Journal

    (place / "two").mkdir()
    with Journal(place / "two" / "metrics.jsonl", key=lambda record: record["step"]) as journal:
        journal.append(lines)
    go(place / "two", small(max_steps=3))
    assert (place / "two" / "log.txt").read_text().count("was replayed") == 1
    assert len(read_records(place / "two" / "metrics.jsonl")) == 3


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sample_trainer.StepWatch.add

    def poisoned(self: Any, loss: float, *args: Any) -> None:
        original(self, float("nan") if self._log.records[3:] else loss, *args)

    monkeypatch.setattr(sample_trainer.StepWatch, "add", poisoned)
    with pytest.raises(UserError, match="loss became nan"):
        go(place / "run", small())
    newest = newest_whole(place / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-4"
    assert not (place / "run" / "adapter").exists()


def test_infinite_weights_are_noticed_before_they_are_saved(place: Path) -> None:
    with pytest.raises(UserError, match=r"became (nan|inf)"):
        go(place / "run", small(learning_rate=1e30, max_grad_norm=1e30))


def test_no_token_to_train_on(place: Path) -> None:
    with pytest.raises(UserError, match="no token to train on"):
        go(place / "run", small(), [])


def test_weights_that_do_not_move(place: Path) -> None:
    with pytest.raises(UserError, match="did not move the weights"):
        go(place / "run", small(learning_rate=1e-300))
    assert not (place / "run" / "adapter").exists()


def test_a_tracker_that_is_missing_names_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssd_lite.engines.training import trackers

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "ssd-lite\[trackers\]"'):
        go(place / "run", small(report_to=["wandb"]))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(tmp_path / "file" / "checkpoints")


def test_running_out_of_card_memory_names_the_keys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.SampleTrainer, "train", full)
    with pytest.raises(UserError, match=r"per_device_train_batch_size.*max_length"):
        go(place / "run", small())


def test_qlora_trains(place: Path) -> None:
    pytest.importorskip("bitsandbytes")
    summary = go(place / "run", small(method="qlora", num_train_epochs=10.0, learning_rate=2e-2), random_rows(4))
    assert summary["final_loss"] < 0.9 * summary["first_loss"]
    config = json.loads((place / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_schedule() -> None:
    schedule = Schedule.of(Train(warmup_ratio=0.25, min_lr_rate=0.2), 12)
    shares = [schedule.share(step) for step in range(12)]
    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert shares[3] == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(shares[3:]))
    assert [Schedule.of(Train(), 1).share(0)] == [1.0]


def test_a_step_may_be_cut_otherwise_after_a_stop(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a card's memory was not enough: smaller micro-batches, as many of them, the same steps."""
    whole = go(place / "whole", small())
    asked = iter([False, False, False, True])
    monkeypatch.setattr("ssd_lite.engines.training.step_watch.stop_requested", lambda: next(asked, False))
    with pytest.raises(Stopped):
        go(place / "run", small())
    went_on = go(place / "run", small(per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert (went_on["steps"], went_on["tokens_trained"]) == (whole["steps"], whole["tokens_trained"])
    ends = [load_file(place / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "run")]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cards", [1, 2, 4])
def test_of_several_cards_one_is_used(tmp_path: Path, cards: int) -> None:
    said: list[str] = []
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert arguments.device.type == "cpu"  # asking settles the count of cards, which is set after
    arguments._n_gpu = cards
    take_one_card(arguments, said.append)
    assert arguments.n_gpu == 1
    assert [f"the first of {cards} cards" in line for line in said] == [True] * (cards > 1)


def test_a_half_written_checkpoint_costs_no_whole_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while step 4 was saved, gone on with, and killed in the next save, at another step."""
    sealed, broken = resumable_trainer.seal, {"checkpoint-4", "checkpoint-3"}

    def seal(folder: Path) -> None:
        if folder.name in broken:
            raise KeyboardInterrupt
        sealed(folder)

    monkeypatch.setattr(resumable_trainer, "seal", seal)
    with pytest.raises(KeyboardInterrupt):
        go(place / "run", small())
    monkeypatch.setattr("ssd_lite.engines.training.step_watch.CHECKPOINT_PERIOD_S", 0)
    with pytest.raises(KeyboardInterrupt):
        go(place / "run", small())
    assert newest_whole(place / "run" / "checkpoints") == place / "run" / "checkpoints" / "checkpoint-2"
    broken.clear()
    monkeypatch.setattr("ssd_lite.engines.training.step_watch.CHECKPOINT_PERIOD_S", 600)
    assert go(place / "run", small())["steps"] == 11
    assert {path.name for path in (place / "run" / "checkpoints").iterdir()} == {"checkpoint-10", "checkpoint-11"}


def test_a_full_disk_at_a_checkpoint_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the weights, of the optimiser, and a file of ours; each has an error of another kind."""
    for name, error in [
        ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device")),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing")),
        ("ssd_lite.engines.training.resumable_trainer.seal", OSError(28, "No space left on device")),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(name, raiser(error))
            with pytest.raises(UserError, match="this checkpoint cannot be written") as caught:
                go(place / "run", small())
        assert "checkpoint-2" in caught.value.where
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", raiser(RuntimeError("something else")))
        with pytest.raises(RuntimeError, match="something else"):
            go(place / "run", small())
    assert go(place / "run", small())["steps"] == 11


def test_a_full_disk_at_the_adapter_is_said_and_the_last_checkpoint_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_trained", raiser(SafetensorError("I/O error: No space left on device")))
        with pytest.raises(UserError, match="this adapter cannot be written"):
            go(place / "run", small())
    assert not (place / "run" / "adapter").exists()
    assert go(place / "run", small())["steps"] == 11
    assert "going on from step 11 of 11" in (place / "run" / "log.txt").read_text()


def raiser(error: Exception) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_the_longest_micro_batch_is_tried_once_and_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card a lack of memory shows in the second step, not hours later; dropout draws what it would have drawn."""
    plain = go(place / "plain", small(lora_dropout=0.1))
    tried: list[tuple[int, ...]] = []
    real = SampleTrainer._try

    def spy(trainer: SampleTrainer, index: int) -> None:
        tried.append(tuple(trainer.train_dataset[index]["input_ids"].shape))
        assert trainer.state.global_step == 1
        real(trainer, index)

    monkeypatch.setattr(SampleTrainer, "_try", spy)
    monkeypatch.setattr(sample_trainer, "lacks_memory_late", lambda: True)
    probed = go(place / "probed", small(lora_dropout=0.1))
    rows = random_rows(22)
    assert len(tried) == 1
    assert tried[0][1] == max(len(row) for row in rows)
    assert probed["final_loss"] == plain["final_loss"]
    ends = [load_file(place / name / "adapter" / "adapter_model.safetensors") for name in ("plain", "probed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_longest_micro_batch_that_lacks_memory_is_said_in_the_second_step(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_trainer, "lacks_memory_late", lambda: True)
    monkeypatch.setattr(SampleTrainer, "_try", raiser(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(UserError, match="no memory left for training"):
        go(place / "run", small())
    assert len(read_records(place / "run" / "metrics.jsonl")) == 1
