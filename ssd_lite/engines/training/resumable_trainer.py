"""transformers' Trainer with our learning-rate schedule, and checkpoints that are sealed and hold what trains alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from ssd_lite.atomic import fsync_folder, seal
from ssd_lite.engines.training.checkpoints import keep_newest, open_mark, written
from ssd_lite.engines.training.peft_model import trainable
from ssd_lite.recipe import Train

WEIGHTS_FILE = "trained.safetensors"


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a share of its peak: linear rise over `warmup` steps, then half a cosine to `floor`.

    The first step trains already (share 1 / warmup), the last one has the floor.
    """

    steps: int
    warmup: int
    floor: float

    @classmethod
    def of(cls, settings: Train, steps: int) -> Schedule:
        """The recipe's schedule for so many optimiser steps."""
        return cls(steps, math.ceil(settings.warmup_ratio * steps), settings.min_lr_rate)

    def share(self, step: int) -> float:
        """Share of the peak in optimiser step `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - 1 - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class ResumableTrainer(Trainer):
    """A Trainer that goes on from its last whole checkpoint. Set `schedule` before anything trains."""

    schedule: Schedule
    lr_scheduler: Any = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedule; the Trainer keeps its state in the checkpoints."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.schedule.share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Older ones go once the new one counts; the Trainer's own limit deletes them before, by file times."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with written(folder):
            if self.is_world_process_zero():
                open_mark(folder)
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal(folder)
                fsync_folder(folder.parent)
                keep_newest(folder.parent)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in trainable(self.model).items()},
            folder / WEIGHTS_FILE,
        )

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS_FILE)
        for name, tensor in trainable(self.model).items():
            tensor.copy_(saved[name])
