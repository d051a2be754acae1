"""Trains a model on the curated rows: transformers' Trainer with our loss, order, schedule and checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ssd_lite.atomic import is_whole, new_folder
from ssd_lite.engines.devices import enough_card_memory
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.engines.training.batching import BatchShape, MicroBatches, TrainingRow, plan_batches, sample_order
from ssd_lite.engines.training.checkpoints import check_writable, newest_whole, step_of, written
from ssd_lite.engines.training.engine_choice import Engine
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.peft_model import BaseModel, build_model, save_trained
from ssd_lite.engines.training.resumable_trainer import Schedule
from ssd_lite.engines.training.sample_trainer import SampleTrainer
from ssd_lite.engines.training.step_log import StepLog
from ssd_lite.engines.training.step_watch import StepWatch
from ssd_lite.engines.training.trackers import prepare_trackers
from ssd_lite.engines.training.weight_change import WeightChange
from ssd_lite.errors import Stopped, UserError
from ssd_lite.progress import Progress
from ssd_lite.recipe import Train

_LESS_MODEL = "Set train.method: qlora, or take a smaller model; `ssd-lite plan` says what fits."


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training writes, and `say`, which keeps a line for people."""

    checkpoints: Path
    metrics: Path
    adapter: Path
    say: Callable[[str], None]


def train_model(
    rows: Sequence[TrainingRow],
    folder: Path,
    base: BaseModel,
    files: TrainingFiles,
    settings: Train,
    *,
    engine: Engine = "peft",
    threads: int | None = None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Train on `rows` from the base in `folder` and publish the result as `files.adapter`; returns what it counted.

    `engine` builds the model; for unsloth its `prepare` came before this module was imported.

    Goes on from the newest whole checkpoint. `threads` None tunes the number of CPU threads while it works;
    `temperature` is the teacher's, for the terms of the loss where rows keep its laws. Raises Stopped when a
    signal asked for it, after a checkpoint; UserError for what the user can mend, the last good checkpoint kept.
    """
    check_adapter_place(files.adapter)
    check_writable(files.checkpoints)
    prepare_trackers(settings.report_to, files.metrics.parent)
    with enough_card_memory("the model", _LESS_MODEL):
        model = LossModel(_build(engine, folder, settings))
    change = WeightChange(model.network)
    tuner = None if torch.cuda.is_available() else ThreadTuner(torch.set_num_threads, threads)
    model.check_head()
    arguments = TrainingArguments(**argument_values(files, settings))
    take_one_card(arguments, files.say)
    dataset, steps = _dataset(rows, settings, arguments.world_size)
    resume = newest_whole(files.checkpoints)
    if resume is not None:
        files.say(f"train: going on from step {step_of(resume)} of {steps}")
    log = StepLog(files.metrics, files.say, writes=arguments.process_index == 0)
    start = 0 if resume is None else step_of(resume)
    with Progress(steps, "steps", "training", start=start) as progress:
        kept = all(row.targets is not None for row in rows)
        watch = StepWatch(log, progress, change, tuner, temperature if kept else None)
        with enough_card_memory("the model", _LESS_MODEL):
            trainer = SampleTrainer(model, arguments, dataset, Schedule.of(settings, steps), watch)
        _run(trainer, resume)
    if watch.stopped_at is not None:
        raise Stopped(f"Training stopped at step {watch.stopped_at} of {steps}.")
    log.close()
    moved = change.norm()
    if not moved > 0 or not math.isfinite(moved):
        raise UserError(
            f"the weights did not move in {steps} steps (norm of the change {moved}).",
            where="train.learning_rate",
            next_step="Raise it, or look at the gradient norms in metrics.jsonl.",
        )
    if trainer.is_world_process_zero():
        publish(model.network, files.adapter, base)
    return {**summarise(log.records), "change_norm": moved, "device": str(arguments.device)}


def _build(engine: Engine, folder: Path, settings: Train) -> torch.nn.Module:
    if engine == "unsloth":
        from ssd_lite.engines.training import unsloth_model

        return unsloth_model.build_model(folder, settings)
    return build_model(folder, settings)


def publish(network: Any, folder: Path, base: BaseModel) -> None:
    """Write the adapter, unless it is there: a kill may have come between it and the manifest."""
    if not is_whole(folder):
        with written(folder, "adapter"), new_folder(folder) as part:
            save_trained(network, part, base)


def check_adapter_place(folder: Path) -> None:
    """Raise UserError where the adapter's folder is there and not whole."""
    if folder.exists() and not is_whole(folder):
        raise UserError(
            "is there, and a file in it is missing or cut.",
            where=str(folder),
            next_step="Move it away; training goes on from its last checkpoint and writes it again.",
        )


def _dataset(rows: Sequence[TrainingRow], settings: Train, processes: int) -> tuple[MicroBatches, int]:
    shape = BatchShape(settings.per_device_train_batch_size, settings.gradient_accumulation_steps, processes)
    if not rows or not any(row.completion_ids for row in rows):
        raise UserError(
            f"{len(rows)} samples hold no token to train on.", where="train.jsonl", next_step="Sample and curate again."
        )
    order = sample_order(len(rows), settings.num_train_epochs, settings.max_steps, shape.step, settings.seed)
    return MicroBatches(rows, plan_batches(rows, order, shape)), math.ceil(len(order) / shape.step)


def argument_values(files: TrainingFiles, settings: Train) -> dict[str, Any]:
    """The Trainer's arguments. Order, schedule and batches are ours, so it sees one epoch of ready micro-batches."""
    on_card = torch.cuda.is_available()
    return {
        "output_dir": str(files.checkpoints),
        "run_name": files.metrics.parent.name,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "num_train_epochs": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        "optim": settings.optim,
        "bf16": on_card and torch.cuda.is_bf16_supported(),
        "use_cpu": not on_card,
        "seed": settings.seed % 2**32,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "report_to": list(settings.report_to) or "none",
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_card,
        "ddp_find_unused_parameters": False,
    }


def take_one_card(arguments: Any, say: Callable[[str], None]) -> None:
    """Leave all cards of one process but the first alone, which the Trainer would otherwise split each batch over."""
    if arguments.n_gpu > 1:
        say(f"train: the first of {arguments.n_gpu} cards is used; accelerate launch takes all (docs/training.md)")
        arguments._n_gpu = 1  # read by the Trainer as it wraps the model; there is no argument for it


def _run(trainer: SampleTrainer, resume: Path | None) -> None:
    advice = (
        "Lower train.per_device_train_batch_size (and raise gradient_accumulation_steps), then train.max_length; set "
        "train.gradient_checkpointing: true or train.method: qlora."
    )
    with enough_card_memory("training", advice):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def summarise(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all steps, those of earlier processes included; the loss is the mean of the last tenth."""
    from importlib.metadata import version

    tail = steps[-max(1, len(steps) // 10) :]
    seconds = sum(step["seconds"] for step in steps)
    tokens = sum(step["input_tokens"] for step in steps)
    return {
        "steps": len(steps),
        "tokens_trained": sum(step["tokens"] for step in steps),
        "tokens_read": tokens,
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
        "first_loss": steps[0]["loss"],
        "final_loss": sum(step["loss"] for step in tail) / len(tail),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "cpu_threads": torch.get_num_threads() if not torch.cuda.is_available() else os.cpu_count(),
    }
