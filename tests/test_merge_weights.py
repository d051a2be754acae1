"""Merging equals PEFT's own, keeps every other file, and refuses what it would merge wrongly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_tiny

from ssd_lite.engines.weights.merge import merge_folder
from ssd_lite.engines.weights.merged_weights import Change
from ssd_lite.engines.weights.model_folder import INDEX_FILE, ModelFolder
from ssd_lite.engines.weights.number_formats import to_float32
from ssd_lite.errors import UserError

pytest.importorskip("peft")


def _train(base: Path, out: Path, **settings: Any) -> Path:
    """A random adapter of `base`, saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(out)
    return out


def _merged_by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    return {name: tensor.numpy() for name, tensor in model.merge_and_unload().state_dict().items()}


def _merge(base: Path, tuned: Path, out: Path, dtype: str = "base", sha256: str = "") -> Change:
    out.mkdir()
    return merge_folder(base, tuned, out, dtype=dtype, base_sha256=sha256)


CASES = {
    "llama": ("llama", {}, {}),
    "llama-tied-sharded": ("llama", {"tie_word_embeddings": True, "shard_size": "150KB"}, {"use_rslora": True}),
    "qwen3-bf16-sharded": ("qwen3", {"head_dim": 32, "dtype": "bfloat16", "shard_size": "150KB"}, {}),
    "patterns": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}, "alpha_pattern": {"down_proj": 64}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_pefts_merge(case: str, tmp_path: Path) -> None:
    kind, model, adapter = CASES[case]
    base = save_tiny(tmp_path / "base", kind, **model)
    tuned = _train(base, tmp_path / "adapter", **adapter)
    change = _merge(base, tuned, tmp_path / "merged")
    wanted, merged, original = _merged_by_peft(base, tuned), ModelFolder(tmp_path / "merged"), ModelFolder(base)
    assert len(original.shards) == (1 if "shard_size" not in model else len(merged.shards))
    assert "shard_size" not in model or len(merged.shards) > 2
    half_a_step = 2**-8 if original.dtype == "BF16" else 1e-6
    for name, info in merged.tensors.items():
        ours = to_float32(np.concatenate(list(merged.blocks(name))), info.dtype)
        assert np.allclose(ours, wanted[name], rtol=half_a_step, atol=1e-6), name
    assert change.tensors == 2 * 7
    assert change.max_abs > 0
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja"):
            assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name
    assert {n: (i.dtype, i.shape) for n, i in merged.tensors.items()} == {
        n: (i.dtype, i.shape) for n, i in original.tensors.items()
    }


def test_blocks_smaller_than_a_tensor_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    tuned = _train(base, tmp_path / "adapter")
    _merge(base, tuned, tmp_path / "whole")
    monkeypatch.setattr("ssd_lite.engines.weights.safetensors_file.BLOCK_NUMBERS", 640)
    _merge(base, tuned, tmp_path / "pieces")
    from safetensors.numpy import load_file

    whole, pieces = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "pieces"))
    assert all(np.allclose(whole[name], pieces[name], rtol=1e-6, atol=1e-7) for name in whole)


def test_another_number_format_changes_config_and_index_only_there(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", shard_size="150KB")
    _merge(base, _train(base, tmp_path / "adapter"), tmp_path / "merged", "bfloat16")
    merged, original = ModelFolder(tmp_path / "merged"), ModelFolder(base)
    assert {info.dtype for info in merged.tensors.values()} == {"BF16"}
    different = {k for k in original.config if original.config[k] != merged.config[k]}
    assert different in ({"dtype"}, {"torch_dtype"})
    index, old = (json.loads((f / INDEX_FILE).read_text()) for f in (tmp_path / "merged", base))
    assert index["weight_map"] == old["weight_map"]
    assert 2 * index["metadata"]["total_size"] == old["metadata"]["total_size"]


def test_full_fine_tuning_is_taken_over(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = save_tiny(tmp_path / "base", dtype="bfloat16", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1.0
    model.save_pretrained(tmp_path / "trained")
    change = _merge(base, tmp_path / "trained", tmp_path / "merged")
    assert change.tensors == 1
    assert ModelFolder(tmp_path / "merged").dtype == "BF16"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    wanted = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, wanted.bfloat16().float())


def _add_tensor(folder: Path, name: str, like: str) -> None:
    """One more tensor in a model's file: a copy of another one."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[like].clone()}, folder / "model.safetensors", metadata={"format": "pt"})


def _train_all(base: Path, out: Path, sha256: str) -> Any:
    """Every weight moved, saved as full fine-tuning saves it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5
    model.save_pretrained(out)
    (out / "ssd_lite_base.json").write_text(json.dumps({"name": "x", "weights_sha256": sha256}))
    return model


def test_full_fine_tuning_copies_what_is_no_weight_of_the_model(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    base, old = save_tiny(tmp_path / "base"), "model.layers.0.self_attn.rotary_emb.inv_freq"
    _add_tensor(base, old, "model.norm.weight")
    _train_all(base, tmp_path / "trained", "a" * 64)
    _merge(base, tmp_path / "trained", tmp_path / "merged", sha256="a" * 64)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert {name for name in before if np.array_equal(before[name], after[name])} == {old}
    with pytest.raises(UserError, match="with other weights"):
        _merge(base, tmp_path / "trained", tmp_path / "other", sha256="b" * 64)
    (tmp_path / "trained" / "ssd_lite_base.json").unlink()
    with pytest.raises(UserError, match=f"another base: {old} has the shape None"):
        _merge(base, tmp_path / "trained", tmp_path / "unknown")


def test_full_fine_tuning_of_tensors_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    base, deeper = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "deeper", num_hidden_layers=3)
    _train_all(deeper, tmp_path / "trained", "a" * 64)
    with pytest.raises(UserError, match=r"another base: model\.layers\.2.*the base None"):
        _merge(base, tmp_path / "trained", tmp_path / "merged", sha256="a" * 64)


def test_a_tied_head_that_is_stored_twice_moves_with_the_embedding(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    _add_tensor(base, "lm_head.weight", "model.embed_tokens.weight")
    model = _train_all(base, tmp_path / "trained", "a" * 64)
    _merge(base, tmp_path / "trained", tmp_path / "merged", sha256="a" * 64)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    wanted = model.model.embed_tokens.weight.detach().numpy()
    assert np.array_equal(merged["lm_head.weight"], wanted)
    assert np.array_equal(merged["model.embed_tokens.weight"], wanted)


def _change_config(adapter: Path, **values: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 5}, "rank 4"),
    ],
)
def test_other_adapters_are_refused(values: dict[str, object], words: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = _train(base, tmp_path / "adapter")
    _change_config(adapter, **values)
    with pytest.raises(UserError, match=re.escape(words)):
        _merge(base, adapter, tmp_path / "merged")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", intermediate_size=96)
    adapter = _train(base, tmp_path / "adapter")
    with pytest.raises(UserError, match="adapter of another base"):
        _merge(other, adapter, tmp_path / "a")
    with pytest.raises(UserError, match="no such tensor"):
        _merge(save_tiny(tmp_path / "short", num_hidden_layers=1), adapter, tmp_path / "b")
    (adapter / "ssd_lite_base.json").write_text(json.dumps({"name": "x", "weights_sha256": "a" * 64}))
    with pytest.raises(UserError, match="with other weights"):
        _merge(base, adapter, tmp_path / "c", sha256="b" * 64)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = save_tiny(tmp_path / "base", dtype="bfloat16")
    adapter = _train(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t * 1e-9 if "lora_B" in n else t for n, t in tensors.items()}, file)
    with pytest.raises(UserError, match="changes 0 of 14 weights once rounded"):
        _merge(base, adapter, tmp_path / "merged")
    save_file({n: torch.full_like(t, float("nan")) for n, t in tensors.items()}, file)
    with pytest.raises(UserError, match="not finite"):
        _merge(base, adapter, tmp_path / "nan")


def test_a_full_disk_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = _train(base, tmp_path / "adapter")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"the merged model needs \d+ bytes"):
        _merge(base, adapter, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []
