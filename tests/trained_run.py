"""Runs whose training or merging is done, made by hand on tiny models: adapter, rows and samples, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import save_tiny

from ssd_lite.atomic import new_folder
from ssd_lite.engines.model_source import resolve_model
from ssd_lite.engines.weights.model_folder import weights_sha256
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder


def make_trained_run(
    folder: Path,
    method: str,
    kind: str = "llama",
    *,
    spread: float = 0.05,
    stored: str = "float32",
    shard_size: str = "1GB",
    **sections: Any,
) -> RunFolder:
    """A random base in `folder`/base and a run in `folder`/run: a random adapter of it, and rows of random ids."""
    base = save_tiny(folder / "base", kind, dtype=stored, shard_size=shard_size, initializer_range=0.1)
    value = {"name": "tiny", "threads": 1, "model": {"name": str(base)}, "train": {"method": method}, **sections}
    run = RunFolder.create(folder / "run", Recipe.model_validate(value))
    write_adapter(base, run.adapter, method, spread)
    write_rows(run, 40)
    run.finish("train", {"steps": 3, "final_loss": 1.25}, 1.0)
    return run


def make_merged_run(folder: Path, model: dict[str, Any] | None = None, **sections: Any) -> RunFolder:
    """A random base in `folder`/base and a run in `folder`/run whose merged model is another random one."""
    named = {"name": str(save_tiny(folder / "base")), **(model or {})}
    run = RunFolder.create(
        folder / "run", Recipe.model_validate({"name": "tiny", "threads": 1, "model": named, **sections})
    )
    with new_folder(run.merged) as part:
        save_tiny(part, initializer_range=0.4)
    run.finish("merge", {"weights_sha256": weights_sha256(run.merged)}, 1.0)
    return run


def write_adapter(base: Path, folder: Path, method: str, spread: float) -> None:
    """An adapter as training leaves it, on all linear modules."""
    import torch

    from ssd_lite.engines.training.peft_model import BaseModel, build_model, save_trained
    from ssd_lite.recipe import Train

    network = build_model(base, Train(method=method, lora_r=4))  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, spread)
    with new_folder(folder) as part:
        save_trained(network, part, BaseModel(str(base), None, resolve_model(str(base)).weights_sha256))


def write_rows(run: RunFolder, count: int) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {
            "problem_id": f"p/{index:02}",
            "index": 0,
            "prompt_ids": draw.integers(3, 1000, 5 + index).tolist(),
            "completion_ids": draw.integers(3, 1000, 30).tolist(),
        }
        for index in range(count)
    ]
    run.train_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
