"""Training in the number formats of a card, on this CPU: bfloat16 base, NF4 of it, norms in float32, autocast.

A format that does not fit another ends a run in its first step, which no training in float32 shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_grpo
import test_trainer
import torch
from safetensors.torch import load_file
from tiny_model import save_tiny_model
from tiny_models import save_tiny

from ssd_lite.engines.training import grpo_trainer, peft_model, sample_trainer, trainer


def load_as_on_a_card(folder: Path, method: str) -> Any:
    """As `peft_model.load_base` does where there is a card, but on the CPU."""
    from transformers import AutoModelForCausalLM

    number_format = torch.float32 if method == "full" else torch.bfloat16
    options: dict[str, Any] = {"dtype": number_format}
    if method == "qlora":
        options |= {"quantization_config": peft_model._nf4(torch.bfloat16), "device_map": {"": "cpu"}}
    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options)
    if method == "qlora":
        peft_model.prepare_quantised(base)
    base.config.use_cache = False
    return base


@pytest.fixture(params=["qlora", "lora", "full"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "qlora":
        pytest.importorskip("bitsandbytes")
    values = trainer.argument_values
    for module in (trainer, grpo_trainer):
        monkeypatch.setattr(module, "argument_values", lambda *given: {**values(*given), "bf16": True})
    monkeypatch.setattr(peft_model, "load_base", load_as_on_a_card)
    monkeypatch.setattr(sample_trainer, "lacks_memory_late", lambda: True)
    return str(request.param)


def trained(folder: Path) -> set[torch.dtype]:
    file = next(file for file in (folder / "adapter").glob("*.safetensors"))
    return {tensor.dtype for tensor in load_file(file).values()}


@pytest.mark.parametrize("checkpointing", [True, False])
def test_it_trains_and_goes_on(method: str, checkpointing: bool, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    settings = test_trainer.small(method=method, gradient_checkpointing=checkpointing, learning_rate=2e-2)
    summary = test_trainer.go(tmp_path / "run", settings)
    assert summary["final_loss"] < summary["first_loss"]
    assert trained(tmp_path / "run") == {torch.float32}


def test_grpo_draws_and_trains(method: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    summary = test_grpo.go(tmp_path / "run", test_grpo.small(method=method, max_steps=2))
    assert summary["change_norm"] > 0
    assert trained(tmp_path / "run") == {torch.float32}
