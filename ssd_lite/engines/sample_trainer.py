"""transformers' Trainer taught our micro-batches, learning-rate schedule, step log, guards and checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback

from ssd_lite.atomic import fsync_folder, seal
from ssd_lite.engines.batching import MicroBatches
from ssd_lite.engines.checkpoints import open_mark
from ssd_lite.engines.loss import loss_terms
from ssd_lite.engines.loss_model import LossModel
from ssd_lite.engines.peft_model import trainable
from ssd_lite.engines.step_log import StepLog
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.engines.weight_change import WeightChange
from ssd_lite.errors import UserError
from ssd_lite.interrupt import stop_requested
from ssd_lite.progress import Progress
from ssd_lite.recipe import Train

WEIGHTS_FILE = "trained.safetensors"
CHECKPOINT_PERIOD_S = 600.0


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


@dataclass
class _StepSums:
    """What the micro-batches of one optimiser step add up to."""

    loss: float = 0.0
    tokens: int = 0
    input_tokens: int = 0
    terms: dict[str, float] = field(default_factory=dict)


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Looks at every step: sums, clock, guards, the wish to stop, and a checkpoint each CHECKPOINT_PERIOD_S."""

    def __init__(
        self, log: StepLog, progress: Progress, change: WeightChange, tuner: ThreadTuner | None, temperature: float
    ) -> None:
        self._log, self._progress, self._change, self._tuner = log, progress, change, tuner
        self._temperature = temperature
        self._sums = _StepSums()
        self._step_start = self._saved = time.monotonic()
        self.stopped_at: int | None = None
        self.accelerator: Any = None

    def add(self, loss: float, inputs: dict[str, Tensor], log_probs: Tensor, seconds: float) -> None:
        """Count one micro-batch. Raises UserError at a loss that is no number, before it can reach the weights."""
        if not math.isfinite(loss):
            raise _not_finite("loss", loss)
        sums = self._sums
        sums.loss += loss
        sums.tokens += inputs["target_ids"].shape[0]
        sums.input_tokens += int(inputs["input_tokens"])
        if inputs["target_ids"].shape[1] > 1:
            for name, value in loss_terms(log_probs, inputs["target_probs"], self._temperature).items():
                sums.terms[name] = sums.terms.get(name, 0.0) + value.item()
        if self._tuner is not None:
            self._tuner.step(seconds, inputs["input_ids"].numel())

    def finish_step(self, step: int, grad_norm: float, learning_rate: float) -> dict[str, Any]:
        """Write the step to the log and start the next one's sums; returns the record."""
        if not math.isfinite(grad_norm):
            raise _not_finite("gradient norm", grad_norm)
        if step == 1 and not self._change.norm() > 0:
            raise UserError(
                f"the first step did not move the weights (gradient norm {grad_norm:.3g}).",
                where="train.learning_rate",
                next_step="Raise it; the samples may also hold no token the model can learn from.",
            )
        sums, seconds = self._sums, max(time.monotonic() - self._step_start, 1e-9)
        record = {
            "step": step,
            "loss": sums.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": sums.tokens,
            "input_tokens": sums.input_tokens,
            "tokens_per_s": round(sums.input_tokens / seconds, 2),
            "seconds": round(seconds, 4),
            **{name: value / sums.tokens for name, value in sums.terms.items()},
        }
        self._log.record(record)
        self._progress.advance(tokens=sums.input_tokens, note=f"loss {sums.loss:.4f}")
        self._sums = _StepSums()
        return record

    def _anyone(self, wish: bool) -> bool:
        """True if any process wishes it: all must leave the loop at the same step."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return wish
        flag = torch.tensor(float(wish), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def gather(self) -> None:
        """Add up the sums of all processes."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return
        sums = self._sums
        names = sorted(sums.terms)
        values = [sums.loss, sums.tokens, sums.input_tokens, *(sums.terms[name] for name in names)]
        mine = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
        total = self.accelerator.reduce(mine, reduction="sum").tolist()
        terms = dict(zip(names, total[3:], strict=True))
        self._sums = _StepSums(total[0], int(total[1]), int(total[2]), terms)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._anyone(stop_requested()) and state.global_step < state.max_steps:
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._saved > CHECKPOINT_PERIOD_S:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()


def _not_finite(what: str, value: float) -> UserError:
    return UserError(
        f"the {what} became {value}; training is stopped and the last good checkpoint is kept.",
        where="train.learning_rate",
        next_step="Lower it (or train.max_grad_norm) and run again in a new folder.",
    )


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
        outputs = model(**{name: value for name, value in inputs.items() if name != "input_tokens"})
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
