"""A whole training through Unsloth, its kernels interpreted on a CPU: our Trainer, checkpoints, resuming and adapter.

Runs where Unsloth is installed, see test_unsloth_equivalence.py.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("Unsloth is not installed; .ci/run checks this in an environment of its own", allow_module_level=True)

from card_jobs import Jobs, training_settings
from card_report import Training, resume_complaints

from ssd_lite.engines.training.proof_model import save_proof_model

pytestmark = pytest.mark.slow
CHANGES = {
    "max_steps": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "lora_r": 8,
    "learning_rate": 5e-3,
}
# Relative, over two steps, float16 against float32; 5e-5 was seen, and 1.5e-4 on a Llama (2026-11-24).
LOSS = 5e-4


def test_stopped_and_gone_on_with_it_is_the_training_of_peft(tmp_path: Path) -> None:
    """QLoRA in two processes under Unsloth, against one under PEFT: losses, and an adapter of the same tensors."""
    import numpy as np
    from safetensors.torch import load_file

    save_proof_model(tmp_path / "tiny", "qwen3")
    ids = np.random.default_rng(0).integers(3, 512, 12).tolist()
    rows = [{"prompt_ids": ids[:4], "completion_ids": ids[4:]}]  # one, so that the second step shows the first
    jobs = Jobs("tiny", tmp_path / "tiny", tmp_path, length=12, threads=1, rows=rows)
    settings = training_settings("qlora", jobs.length, **CHANGES)
    peft = Training("peft", settings, jobs.train("peft", "qlora", **CHANGES))
    unsloth = Training("unsloth", settings, jobs.train_broken("unsloth", "qlora", 1, interpreter=True, **CHANGES))
    assert peft.losses[1] < 0.99 * peft.losses[0], "what the checkpoint holds would not show"
    assert resume_complaints(peft, unsloth, 1) == []
    assert max(abs(a - b) / a for a, b in zip(peft.losses, unsloth.losses, strict=True)) <= LOSS
    one, other = (next(tmp_path.glob(f"{name}-*/adapter")) for name in ("peft", "broken-unsloth"))
    trained = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    assert {name: tensor.shape for name, tensor in trained[0].items()} == {
        name: tensor.shape for name, tensor in trained[1].items()
    }
    assert all(tensor.dtype.is_floating_point and tensor.element_size() == 4 for tensor in trained[1].values())
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (one, other)]
    for key in ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "base_model_name_or_path"):
        assert configs[0][key] == configs[1][key], key
