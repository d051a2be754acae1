"""Small models for tests: the packaged model's folder, and random llama, qwen2 and qwen3 folders with its tokenizer."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.engines.gguf.tokenizer import write_tokenizer
from ssd_lite.engines.model_source import ModelSource, hf_folder, resolve_model

PACKAGED = "smollm2-135m-instruct"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@contextmanager
def cache_in(folder: Path) -> Iterator[Path]:
    """Let the program keep its cache in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_LITE_CACHE", str(folder))
        yield folder


def packaged_source() -> ModelSource:
    """The packaged model; the test is skipped where its package is not installed."""
    pytest.importorskip("gguf")
    try:
        return resolve_model(PACKAGED)
    except Exception as error:
        pytest.skip(f"no packaged model: {error}")


@cache
def shared_cache() -> Path:
    """One cache for the test session, so that the packaged model is dequantised once."""
    folder = Path(tempfile.mkdtemp(prefix="ssd-lite-tests-"))
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def packaged_fields() -> dict[str, Any]:
    """The packaged model's metadata."""
    with cache_in(shared_cache()):
        path = packaged_source().gguf
    assert path is not None
    return open_gguf(path).fields


@cache
def packaged_folder() -> Path:
    """The packaged model, dequantised."""
    with cache_in(shared_cache()):
        return hf_folder(packaged_source())


def save_tiny(
    folder: Path, kind: str = "llama", *, dtype: str = "float32", shard_size: str = "1GB", **settings: Any
) -> Path:
    """A random model (2 layers) of an architecture with the packaged tokenizer; weights large enough to matter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}[kind]
    common = {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**common, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    write_small_tokenizer(folder)
    return folder


def write_small_tokenizer(folder: Path) -> None:
    """The packaged tokenizer cut to its first 1,000 tokens: a byte-level BPE numbers its tokens in order of merging."""
    write_tokenizer(packaged_fields(), folder, 512, "")
    value = json.loads((folder / "tokenizer.json").read_text())
    vocab = {token: index for token, index in value["model"]["vocab"].items() if index < 1000}
    merges = [merge for merge in value["model"]["merges"] if merge.replace(" ", "") in vocab]
    value["model"] |= {"vocab": vocab, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(value))


def llama_logits(gguf: Path, ids: list[int]) -> Any:
    """Logits [vocabulary] of the last position, by llama.cpp."""
    from ssd_lite.engines.llama_context import LlamaContext, LlamaModel

    model = LlamaModel(gguf)
    context = LlamaContext(model, sequences=1, length=len(ids) + 1)
    logits = context.prefill(0, ids)
    context.close()
    model.close()
    return logits


def hf_logits(folder: Path, ids: list[int]) -> Any:
    """Logits [vocabulary] of the last position, by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4},
}
SEEING = {
    "qwen3_5": (
        {
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
    ),
    "gemma3": ({}, {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}),
}


def save_family(folder: Path, family: str, **settings: Any) -> Path:
    """A random model of MIXTURES, or of SEEING with its image tower, as such models are published; no tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "initializer_range": 0.1,
        **MIXTURES.get(family, {}),
        **settings,
    }
    torch.manual_seed(0)
    make = transformers.CONFIG_MAPPING[family]
    if family in SEEING:
        of_text, vision = SEEING[family]
        config = make(text_config=text | of_text, vision_config={"patch_size": 14, "image_size": 28, **vision})
        model = transformers.AutoModelForImageTextToText.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(make(**text))
    model.to(torch.float32).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder
