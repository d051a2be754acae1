"""Length buckets against packing, measured in turns on one model: `python tests/bench/training.py MODEL_FOLDER`."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssd_lite.engines.training.batching import TrainingRow, collate
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.peft_model import build_model
from ssd_lite.recipe import Train


def rows_like(count: int, shortest: int, longest: int, vocabulary: int) -> list[TrainingRow]:
    """Rows of random ids: prompt a third, lengths spread as completions are (log-normal, cut to the range)."""
    draw = np.random.default_rng(0)
    middle = (shortest * longest) ** 0.5
    lengths = np.clip(middle * np.exp(0.5 * draw.standard_normal(count)), shortest, longest).astype(int)
    rows = [tuple(draw.integers(1, vocabulary, length).tolist()) for length in lengths]
    return [TrainingRow(ids[: len(ids) // 3], ids[len(ids) // 3 :]) for ids in rows]


def packed(rows: list[TrainingRow], step_tokens: int) -> dict[str, Tensor | dict[str, Tensor]]:
    """The same samples end to end in one row, position ids starting anew: no attention between samples."""
    single = [collate([row], step_tokens) for row in rows]
    starts = np.cumsum([0] + [len(row) for row in rows[:-1]])
    return {
        "input_ids": torch.cat([part["input_ids"] for part in single], dim=1),
        "positions": torch.cat([part["positions"] + int(at) for part, at in zip(single, starts, strict=True)]),
        "target_ids": torch.cat([part["target_ids"] for part in single]),
        "target_probs": torch.cat([part["target_probs"] for part in single]),
        "step_tokens": torch.tensor(step_tokens),
        "attention": {"position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None]},
    }


def batches(rows: list[TrainingRow], way: str, size: int) -> list[dict[str, Tensor]]:
    """The micro-batches of one step: `padded` as drawn, `bucketed` by length, `packed` into one row each."""
    ordered = sorted(rows, key=len, reverse=True) if way == "bucketed" else rows
    tokens = sum(len(row.completion_ids) for row in rows)
    parts = [ordered[at : at + size] for at in range(0, len(rows), size)]
    made = [packed(part, tokens) if way == "packed" else collate(part, tokens) for part in parts]
    return [{name: value for name, value in part.items() if name != "input_tokens"} for part in made]  # type: ignore[misc]


def step_seconds(model: LossModel, step: list[dict[str, Tensor]]) -> float:
    """Forward and backward of one step."""
    started = time.perf_counter()
    for part in step:
        model(**part)["loss"].backward()
    model.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=80)
    parser.add_argument("--longest", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--ways", default="padded,bucketed,packed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Train(gradient_checkpointing=options.gradient_checkpointing)
    model = LossModel(build_model(options.folder, settings))
    vocabulary = model.network.get_base_model().config.vocab_size  # type: ignore[operator,union-attr]
    rows = rows_like(options.rows, options.shortest, options.longest, vocabulary)
    read = sum(len(row) for row in rows)
    ways = options.ways.split(",")
    steps = {way: batches(rows, way, options.micro_batch) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            times[way].append(step_seconds(model, steps[way]))
    for way in ways:
        median = statistics.median(times[way])
        computed = sum(part["input_ids"].numel() for part in steps[way])
        print(f"{way:9} {median:6.2f} s/step  {read / median:7.1f} tok/s  padding {1 - read / computed:5.1%}", end="  ")
        print(f"{median / statistics.median(times[ways[0]]):.2f} of {ways[0]}")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, {read} tokens a step")


if __name__ == "__main__":
    main()
