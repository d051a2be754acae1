"""The Trainer taught our micro-batches, step log and guards."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from ssd_lite.engines.training.batching import MicroBatches
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.resumable_trainer import ResumableTrainer, Schedule
from ssd_lite.engines.training.step_watch import StepWatch

_NOT_FOR_THE_MODEL = ("input_tokens", "teacher_probs")


class SampleTrainer(ResumableTrainer):
    """The Trainer of one run. Batches come ready; the loss is already divided by the step's tokens."""

    def __init__(
        self, model: LossModel, arguments: Any, dataset: MicroBatches, schedule: Schedule, watch: StepWatch
    ) -> None:
        self.schedule, self._watch = schedule, watch
        self._longest = dataset.longest() if lacks_memory_late() else None
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
        if self._longest is not None and self.optimizer.state:  # from the second step on: all memory is taken now
            self._try(self._longest)
            self._longest = None
        result: Tensor = super().training_step(*args, **kwargs)
        loss, inputs, log_probs, started = self._pending
        self._watch.add(loss.item(), inputs, log_probs, time.monotonic() - started)
        return result

    def _try(self, index: int) -> None:
        """Forward and backward of a micro-batch for nothing: what would lack memory hours later lacks it now.

        Called where a step begins, so no gradient is lost, and the random numbers of training stay as they were.
        """
        inputs = self._prepare_inputs(self.train_dataset[index])
        with torch.random.fork_rng():
            with self.compute_loss_context_manager():
                loss = self.model(**{name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_MODEL})
            self.accelerator.backward(loss["loss"])
        self.model.zero_grad(set_to_none=True)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Put the step into metrics.jsonl, then tell the trackers."""
        if "grad_norm" in logs:
            self._watch.gather()
            record = self._watch.finish_step(
                self.state.global_step, float(logs["grad_norm"]), float(logs["learning_rate"])
            )
            logs = {name: value for name, value in record.items() if name != "step"}
        super().log(logs, *args, **kwargs)


def lacks_memory_late() -> bool:
    """True where a longer micro-batch than those before can lack memory: on a card, in one process."""
    return torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) == 1
