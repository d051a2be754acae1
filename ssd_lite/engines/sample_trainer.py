"""transformers' Trainer taught our micro-batches, learning-rate schedule, step log, guards and checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from ssd_lite.atomic import fsync_folder, seal
from ssd_lite.engines.batching import MicroBatches
from ssd_lite.engines.checkpoints import open_mark
from ssd_lite.engines.loss_model import LossModel
from ssd_lite.engines.peft_model import trainable
from ssd_lite.engines.step_watch import StepWatch
from ssd_lite.recipe import Train

WEIGHTS_FILE = "trained.safetensors"
_NOT_FOR_THE_MODEL = ("input_tokens", "teacher_probs")


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


class SampleTrainer(Trainer):  # type: ignore[misc]
    """The Trainer of one run. Batches come ready; the loss is already divided by the step's tokens."""

    def __init__(
        self, model: LossModel, arguments: Any, dataset: MicroBatches, schedule: Schedule, watch: StepWatch
    ) -> None:
        self._schedule, self._watch = schedule, watch
        self.lr_scheduler: Any = None
        super().__init__(model=model, args=arguments, train_dataset=dataset, callbacks=[watch])
        self.remove_callback(PrinterCallback)
        watch.accelerator = self.accelerator

    def get_train_dataloader(self) -> Any:
        """The micro-batches in their order, dealt to the processes in turn."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=1,
            shuffle=False,
            collate_fn=lambda items: items[0],
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Micro-batches of one step and its trained tokens, which tells the Trainer that the loss is normalised."""
        samples, _ = super().get_batch_samples(*args, **kwargs)
        return samples, samples[0]["step_tokens"] if samples else None

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """This micro-batch's share of the step's mean loss; processes average gradients, hence their number."""
        started = time.monotonic()
        outputs = model(**{name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_MODEL})
        loss: Tensor = outputs["loss"]
        self._pending = (loss.detach(), inputs, outputs["log_probs"], started)
        shared: Tensor = loss * self.accelerator.num_processes
        return shared

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch."""
        result: Tensor = super().training_step(*args, **kwargs)
        loss, inputs, log_probs, started = self._pending
        self._watch.add(loss.item(), inputs, log_probs, time.monotonic() - started)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Put the step into metrics.jsonl, then tell the trackers."""
        if "grad_norm" in logs:
            self._watch.gather()
            record = self._watch.finish_step(
                self.state.global_step, float(logs["grad_norm"]), float(logs["learning_rate"])
            )
            logs = {name: value for name, value in record.items() if name != "step"}
        super().log(logs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedule; the Trainer keeps its state in the checkpoints."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self._schedule.share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            open_mark(folder)
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(folder)
            fsync_folder(folder.parent)

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
