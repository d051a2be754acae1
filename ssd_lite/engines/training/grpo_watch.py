"""What GRPO's steps look like in metrics.jsonl: TRL's figures under our names, the guards, and the wish to stop."""

from __future__ import annotations

import math
import time
from typing import Any

from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.engines.training.step_log import StepLog
from ssd_lite.engines.training.step_watch import StepWatch, not_finite
from ssd_lite.engines.training.weight_change import WeightChange
from ssd_lite.progress import Progress

# TRL's name → ours. A group is the completions of one prompt; one with equal rewards has no gradient.
_FIGURES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "equal_groups",
    "completions/clipped_ratio": "cut_off",
    "entropy": "entropy",
    "kl": "kl",
}


class GrpoWatch(StepWatch):
    """Logs each step and leaves the loop after it where a signal asked for it.

    A record has step, loss, grad_norm, learning_rate, tokens (drawn and trained), input_tokens (prompts too),
    tokens_per_s and seconds (drawing, grading and training together), and `reward` and `reward_std` over the step's
    completions, `equal_groups` and `cut_off`, both shares, `entropy` in nats, and `kl` where beta is above 0.
    """

    def __init__(
        self, log: StepLog, progress: Progress, change: WeightChange, tuner: ThreadTuner | None, completions: int
    ) -> None:
        super().__init__(log, progress, change, tuner, None)
        self._completions = completions
        self._read = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._read = state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "grad_norm" not in logs:
            return
        if not math.isfinite(logs["grad_norm"]):
            raise not_finite("gradient norm", logs["grad_norm"])
        seconds = max(time.monotonic() - self._step_start, 1e-9)
        read = state.num_input_tokens_seen - self._read
        self._read = state.num_input_tokens_seen
        record = {
            "step": state.global_step,
            "loss": float(logs["loss"]),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
            "tokens": round(logs["completions/mean_length"] * self._completions),
            "input_tokens": read,
            "tokens_per_s": round(read / seconds, 2),
            "seconds": round(seconds, 4),
            **{ours: float(logs[name]) for name, ours in _FIGURES.items() if name in logs},
        }
        self._log.record(record)
        self._progress.advance(tokens=read, note=f"reward {record['reward']:.3f}")
        if self._tuner is not None:
            self._tuner.step(seconds, read)
