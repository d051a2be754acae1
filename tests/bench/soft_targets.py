"""How much of a step's gradient is the noise of the draw: sampled targets drawn anew against soft ones.

Run by hand on a run that kept its laws: `python tests/bench/soft_targets.py RUN_DIR [rows] [draws]`. The contexts stay
those that were sampled; only the trained tokens are drawn again, so this is the noise that soft targets take away.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from ssd_lite.engines.model_source import hf_folder
from ssd_lite.engines.training.batching import collate
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.peft_model import build_model, trainable
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.train import read_rows


def gradient(model: LossModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The flat gradient of every trained tensor."""
    model.zero_grad()
    names = ("input_ids", "positions", "target_ids", "target_probs", "step_tokens")
    model(**{name: batch[name] for name in names})["loss"].backward()
    return torch.cat([tensor.grad.flatten() for tensor in trainable(model).values() if tensor.grad is not None])


def main(folder: Path, count: int, draws: int) -> None:
    """Print the squared norms of the soft gradient, of the noise, and their ratio."""
    torch.set_num_threads(1)
    run = RunFolder.open(folder)
    rows = read_rows(run.train_rows, run.recipe.train.max_length, run.targets, soft=True)[:count]
    model = LossModel(build_model(hf_folder(base_model(run)), run.recipe.train)).train(False)
    torch.manual_seed(0)
    with torch.no_grad():  # B starts at zero, which would hide the gradient of A
        for name, tensor in trainable(model).items():
            if "lora_B" in name:
                tensor.normal_(std=1e-3)
    tokens = sum(len(row.completion_ids) for row in rows)
    soft = gradient(model, collate(rows, tokens))
    draw = np.random.default_rng(0)
    noise = []
    for _ in range(draws):
        batch = collate([dataclasses.replace(row, soft=False) for row in rows], tokens)
        q = batch["teacher_probs"].double()
        column = (q.cumsum(dim=1) <= torch.from_numpy(draw.random((tokens, 1))) * q.sum(dim=1, keepdim=True)).sum(dim=1)
        column = torch.minimum(column, (q > 0).sum(dim=1) - 1)
        batch["target_probs"] = torch.nn.functional.one_hot(column, q.shape[1]).float()
        noise.append((gradient(model, batch) - soft).square().sum().item())
    signal, spread = soft.square().sum().item(), float(np.mean(noise))
    print(f"{len(rows)} rows, {tokens} trained tokens, {draws} draws, {len(soft)} trained weights")
    print(f"|soft gradient|^2 {signal:.4g}; mean |sampled - soft|^2 {spread:.4g}; noise / signal {spread / signal:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in [*sys.argv[2:], *["8", "12"][len(sys.argv) - 2 :]]))
