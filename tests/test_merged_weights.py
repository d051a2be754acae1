"""Each adapted weight must have changed once rounded: one that did not is a module that was not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_tiny

from ssd_lite.engines.weights.merge import merge_folder
from ssd_lite.engines.weights.merged_weights import Change
from ssd_lite.errors import UserError

pytest.importorskip("peft")


def adapter_with_faint(base: Path, out: Path, faint: str) -> Path:
    """A random adapter of all linear modules; where a name has `faint` in it, the update is lost in bfloat16."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 1e-10 if faint in name else 0.1)
    model.save_pretrained(out)
    return out


def merge(base: Path, tuned: Path, out: Path, dtype: str = "base") -> Change:
    out.mkdir()
    return merge_folder(base, tuned, out, dtype=dtype, base_sha256="")


@pytest.mark.parametrize(("faint", "moved"), [("layers.1.mlp.up_proj", 13), ("self_attn", 6)])
def test_a_weight_that_rounding_left_alone_is_noticed(faint: str, moved: int, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype="bfloat16")
    tuned = adapter_with_faint(base, tmp_path / "adapter", faint)
    with pytest.raises(UserError, match=f"changes {moved} of 14 weights once rounded") as caught:
        merge(base, tuned, tmp_path / "merged")
    assert "set merge.dtype: float32" in caught.value.next_step
    # In float32 the same update is there.
    assert merge(base, tuned, tmp_path / "exact", "float32").tensors == 14
