"""Which samples a training step sees and how they become tensors: seeded order, equal lengths together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_lite.engines.sampling.targets import Targets


@dataclass(frozen=True)
class TrainingRow:
    """One sample to train on, ids exactly as sampled.

    `targets` are the teacher's laws at the completion's positions, None where they were not kept. `soft` trains on
    them, and needs them; else the completion's own ids are trained, and the laws only serve the terms of the loss.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    targets: Targets | None = None
    soft: bool = False

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass, and the trained tokens of the whole optimiser step they belong to."""

    rows: tuple[int, ...]
    step_tokens: int


@dataclass(frozen=True)
class BatchShape:
    """Samples in a micro-batch, micro-batches in a step on one process, and processes that work."""

    micro_batch: int
    accumulation: int
    processes: int = 1

    @property
    def step(self) -> int:
        """Samples in one optimiser step."""
        return self.micro_batch * self.accumulation * self.processes


def sample_order(count: int, epochs: float, max_steps: int | None, step: int, seed: int) -> list[int]:
    """All epochs as one flat list of row numbers: a permutation by (seed, epoch) each, the last one cut.

    `max_steps` optimiser steps of `step` samples override `epochs`.
    """
    wanted = max_steps * step if max_steps is not None else max(1, round(epochs * count))
    order: list[int] = []
    for epoch in range(math.ceil(wanted / count)):
        order.extend(np.random.default_rng([seed, epoch]).permutation(count).tolist())
    return order[:wanted]


def plan_batches(rows: Sequence[TrainingRow], order: Sequence[int], shape: BatchShape) -> list[MicroBatch]:
    """Cut the order into steps and each step into micro-batches of about equal lengths, the longest first.

    Sorting inside a step changes no gradient, because the loss is normalised by the tokens of the whole step; it only
    saves padding. The last step may be smaller. With several processes its micro-batches are filled up to a multiple of
    their number by empty ones.
    """
    plan: list[MicroBatch] = []
    for start in range(0, len(order), shape.step):
        step = sorted(order[start : start + shape.step], key=lambda row: (-len(rows[row]), row))
        tokens = sum(len(rows[row].completion_ids) for row in step)
        parts = [tuple(step[at : at + shape.micro_batch]) for at in range(0, len(step), shape.micro_batch)]
        parts += [()] * (-len(parts) % shape.processes)
        plan.extend(MicroBatch(part, tokens) for part in parts)
    return plan


def collate(rows: Sequence[TrainingRow], step_tokens: int) -> dict[str, Tensor]:
    """Tensors of one micro-batch, padded on the right.

    `input_ids` `[B, L]` · `positions` `[N]`: places in the flattened `[B * L]` hidden states whose next token is
    trained · `target_ids`, `target_probs` `[N, k]`, what is trained on · `teacher_probs` `[N, k]`, the teacher's law on
    the same ids, only where every row keeps it · `step_tokens` and `input_tokens` (padding not counted), scalars.
    No attention mask is needed: under causal attention no real token sees the padding to its right, and padding has
    no target. So the pad id has no meaning, and 0 is taken.
    """
    length = max((len(row) for row in rows), default=1)
    input_ids = torch.zeros(max(1, len(rows)), length, dtype=torch.long)
    positions = [torch.empty(0, dtype=torch.long)]
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
        first = number * length + len(row.prompt_ids) - 1
        positions.append(torch.arange(first, first + len(row.completion_ids)))
    return {
        "input_ids": input_ids,
        "positions": torch.cat(positions),
        **_targets(rows),
        "step_tokens": torch.tensor(step_tokens),
        "input_tokens": torch.tensor(sum(len(row) for row in rows)),
    }


def _targets(rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
    width = max((int(row.targets.counts.max()) for row in rows if row.targets is not None), default=1)
    count = sum(len(row.completion_ids) for row in rows)
    ids, trained, teacher = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width), []
    at = 0
    for row in rows:
        part = slice(at, at + len(row.completion_ids))
        drawn = torch.tensor(row.completion_ids)
        if row.targets is None:
            ids[part, 0], trained[part, 0] = drawn, 1.0
        else:
            row_ids, row_probs = map(torch.from_numpy, row.targets.padded(width))
            ids[part] = row_ids
            # Padding has id 0, which may be the drawn token: only survivors can match.
            matches = (row_ids == drawn[:, None]) & (row_probs > 0)
            trained[part] = row_probs if row.soft else matches.float()
            teacher.append(row_probs)
        at = part.stop
    found = {"target_ids": ids, "target_probs": trained}
    return {**found, "teacher_probs": torch.cat(teacher)} if len(teacher) == len(rows) > 0 else found


class MicroBatches(Dataset[dict[str, Tensor]]):
    """The whole training in order, one item a micro-batch; the trainer sees it as a single epoch."""

    def __init__(self, rows: Sequence[TrainingRow], plan: Sequence[MicroBatch]) -> None:
        self._rows, self._plan = rows, plan

    def __len__(self) -> int:
        return len(self._plan)

    def longest(self) -> int:
        """Index of the micro-batch that takes the most memory: rows times the longest of them."""
        return max(range(len(self)), key=lambda index: self._padded(self._plan[index]))

    def _padded(self, batch: MicroBatch) -> int:
        return len(batch.rows) * max((len(self._rows[row]) for row in batch.rows), default=0)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        part = self._plan[index]
        return collate([self._rows[row] for row in part.rows], part.step_tokens)
