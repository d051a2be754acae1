"""What happens around each optimiser step: sums and the loss's terms, the log, guards, and the wish to stop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.engines.training.loss import TERMS, loss_terms
from ssd_lite.engines.training.step_log import StepLog
from ssd_lite.engines.training.weight_change import WeightChange
from ssd_lite.errors import UserError
from ssd_lite.interrupt import stop_requested
from ssd_lite.progress import Progress

CHECKPOINT_PERIOD_S = 600.0


@dataclass
class _StepSums:
    """What the micro-batches of one optimiser step add up to."""

    loss: float = 0.0
    tokens: int = 0
    input_tokens: int = 0
    terms: dict[str, float] = field(default_factory=dict)


class StepWatch(TrainerCallback):
    """Looks at every step: sums, clock, guards, the wish to stop, and a checkpoint each CHECKPOINT_PERIOD_S.

    `temperature` is the teacher's, for the terms of the loss; None where the rows do not keep the teacher's laws.
    """

    def __init__(
        self,
        log: StepLog,
        progress: Progress,
        change: WeightChange,
        tuner: ThreadTuner | None,
        temperature: float | None,
    ) -> None:
        self._log, self._progress, self._change, self._tuner = log, progress, change, tuner
        self._temperature = temperature
        self._sums = self._nothing()
        self._step_start = self._saved = time.monotonic()
        self.stopped_at: int | None = None
        self.accelerator: Any = None

    def add(self, loss: float, inputs: dict[str, Tensor], log_probs: Tensor, seconds: float) -> None:
        """Count one micro-batch. Raises UserError at a loss that is no number, before it can reach the weights."""
        if not math.isfinite(loss):
            raise not_finite("loss", loss)
        sums = self._sums
        sums.loss += loss
        sums.tokens += inputs["target_ids"].shape[0]
        sums.input_tokens += int(inputs["input_tokens"])
        if self._temperature is not None and "teacher_probs" in inputs:
            for name, value in loss_terms(log_probs, inputs["teacher_probs"], self._temperature).items():
                sums.terms[name] += value.item()
        if self._tuner is not None:
            self._tuner.step(seconds, inputs["input_ids"].numel())

    def finish_step(self, step: int, grad_norm: float, learning_rate: float) -> dict[str, Any]:
        """Write the step to the log and start the next one's sums; returns the record."""
        if not math.isfinite(grad_norm):
            raise not_finite("gradient norm", grad_norm)
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
        self._sums = self._nothing()
        return record

    def _nothing(self) -> _StepSums:
        """Sums of a new step. Every process has the same terms, those without a row too, or `gather` would not fit."""
        return _StepSums(terms={} if self._temperature is None else dict.fromkeys(TERMS, 0.0))

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


def not_finite(what: str, value: float) -> UserError:
    """The error of a loss or gradient norm that is no finite number."""
    return UserError(
        f"the {what} became {value}; training is stopped and the last good checkpoint is kept.",
        where="train.learning_rate",
        next_step="Lower it (or train.max_grad_norm) and run again in a new folder.",
    )
