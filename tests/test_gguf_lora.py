"""An adapter as a GGUF: llama.cpp with it on the base GGUF computes what the merged model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from plain_gguf import write_gguf
from tiny_architectures import CASES, save_case
from tiny_models import hf_logits, save_tiny

from ssd_lite.cli import main
from ssd_lite.engines.gguf.lora import write_lora_gguf
from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.engines.model_source import resolve_model
from ssd_lite.engines.weights.merge import merge_folder
from ssd_lite.errors import UserError
from ssd_lite.plan.shapes import from_config
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder

pytest.importorskip("peft")
llama_cpp = pytest.importorskip("llama_cpp")
IDS = [5, *range(100, 160), 7, 9, 200]
# One scale for all, and scales that differ by rank, alpha and rsLoRA's square root.
PLAIN: dict[str, Any] = {}
PATTERNS: dict[str, Any] = {
    "use_rslora": True,
    "rank_pattern": {"o_proj": 2, "down_proj": 6},
    "alpha_pattern": {"layers.0.self_attn.o_proj": 16},
}


def _train(base: Path, out: Path, **settings: Any) -> Path:
    """A random adapter of all linear layers, saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    asked = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**asked))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(out)
    return out


def _logits(gguf: Path, ids: list[int], lora: Path | None = None) -> Any:
    model = llama_cpp.Llama(
        str(gguf), lora_path=str(lora) if lora else None, n_ctx=256, logits_all=True, verbose=False, n_threads=1
    )
    model.eval(ids)
    logits = np.array(model.scores[len(ids) - 1])
    model.close()
    return logits


def _distance(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", ["llama3", "smollm3", "qwen2", "qwen3", "mistral-tekken", "gemma3", "phi4"])
@pytest.mark.parametrize("settings", [PLAIN, PATTERNS], ids=["plain", "patterns"])
def test_on_the_base_gguf_it_computes_what_the_merged_model_computes(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    base = save_case(tmp_path / "base", CASES[name])
    adapter = _train(base, tmp_path / "adapter", **settings)
    (tmp_path / "merged").mkdir()
    merge_folder(base, adapter, tmp_path / "merged", dtype="float32", base_sha256="")
    for folder in ("base", "merged"):
        write_gguf(tmp_path / folder, tmp_path / f"{folder}.gguf", "f32")
    written = write_lora_gguf(adapter, base, "", tmp_path / "lora.gguf", name="lora", base_name="base")
    together = _logits(tmp_path / "base.gguf", IDS, tmp_path / "lora.gguf")
    merged = _logits(tmp_path / "merged.gguf", IDS)
    assert _distance(together, merged) < 5e-3
    assert _distance(merged, hf_logits(tmp_path / "merged", IDS)) < 5e-3
    assert _distance(_logits(tmp_path / "base.gguf", IDS), merged) > 5e-2
    tensors = open_gguf(tmp_path / "lora.gguf").tensors
    assert written.weights == len(tensors) // 2 == sum(key.endswith(".weight.lora_a") for key in tensors)


def test_the_metadata_says_what_it_is(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", num_hidden_layers=1)
    adapter = _train(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    write_lora_gguf(adapter, base, "", tmp_path / "lora.gguf", name="mine-lora", base_name="owner/base")
    file = open_gguf(tmp_path / "lora.gguf")
    wanted = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "mine-lora",
        "general.base_model.0.name": "owner/base",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    assert {key: file.fields[key] for key in wanted} == wanted
    shapes = {name: tuple(map(int, tensor.shape)) for name, tensor in file.tensors.items()}
    assert shapes == {
        "blk.0.attn_q.weight.lora_a": (64, 4),
        "blk.0.attn_q.weight.lora_b": (4, 64),
        "blk.0.attn_v.weight.lora_a": (64, 4),
        "blk.0.attn_v.weight.lora_b": (4, 32),
    }


def test_adapters_that_are_not_plain_lora_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", num_hidden_layers=1)
    adapter = _train(base, tmp_path / "adapter", use_dora=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="use_dora"):
        write_lora_gguf(adapter, base, "", tmp_path / "out" / "lora.gguf", name="x", base_name="x")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose training is done and that is not merged."""
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    base = save_tiny(tmp_path / "base", num_hidden_layers=1)
    run = RunFolder.create(tmp_path / "run", Recipe.model_validate({"name": "tiny", "model": {"name": str(base)}}))
    _train(base, run.adapter)
    recorded = {"name": str(base), "revision": None, "weights_sha256": resolve_model(str(base)).weights_sha256}
    (run.adapter / "ssd_lite_base.json").write_text(json.dumps(recorded))
    run.finish("train", {"steps": 3, "final_loss": 1.25}, 1.0)
    return run


def test_export_adapter_only_writes_the_file_without_merging(run: RunFolder) -> None:
    done = CliRunner().invoke(main, ["export", str(run.path), "--adapter-only", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["path"] == "gguf/tiny-lora.gguf"
    assert answer["bytes"] == (run.gguf / "tiny-lora.gguf").stat().st_size
    assert not run.merged.exists()
    text = CliRunner().invoke(main, ["export", str(run.path), "--adapter-only"]).stdout
    assert "tiny-lora.gguf" in text
    assert "--lora" in text


def test_adapter_only_needs_a_run_with_an_adapter(run: RunFolder) -> None:
    base = run.recipe.model.name
    refused = CliRunner().invoke(main, ["export", base, "--adapter-only"])
    assert refused.exit_code == 2
    assert "run" in refused.output
    (run.adapter / "adapter_config.json").unlink()
    refused = CliRunner().invoke(main, ["export", str(run.path), "--adapter-only"])
    assert refused.exit_code == 2
    assert "trained all weights" in refused.output


@pytest.mark.parametrize("name", ["phi4", "smollm3", "gemma3"])
def test_the_plan_counts_the_weights_that_peft_trains(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    base = save_case(tmp_path / "base", CASES[name])
    adapter = load_file(_train(base, tmp_path / "adapter") / "adapter_model.safetensors")
    shape = from_config(json.loads((base / "config.json").read_text()), name)
    assert shape.lora_parameters("all-linear", 4) == sum(array.size for array in adapter.values())
