"""A small random model of every architecture that is written as GGUF, each with a tokenizer of its family."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from reference_converter import tokenizers_folder
from tiny_models import LLAMA3_ROPE, packaged_fields
from tiny_tokenizers import add_bos, byte_level, from_pieces, from_ranks, tiktoken_ranks, write_tokenizer

from ssd_lite.engines.gguf.tokenizer import write_tokenizer as write_packaged_tokenizer

_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
_LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + 0.5 * i for i in range(12)],
    "short_factor": [1.0 + 0.05 * i for i in range(12)],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Case:
    """One model: its class in transformers, its settings, its tokenizer, and llama.cpp's name of the cut."""

    family: str
    tokenizer: Callable[[Path], None]
    settings: dict[str, Any] = field(default_factory=dict)
    pre: str | None = None
    dtype: str = "float32"


def _llama3(folder: Path) -> None:
    value = byte_level("llama-bpe", _LLAMA3)
    bos = value["added_tokens"][0]
    value["post_processor"] = add_bos(bos["content"], bos["id"])
    write_tokenizer(folder, value, bos=_LLAMA3[0], eos="<|eot_id|>", ends=_LLAMA3[1:3])


def _qwen(folder: Path) -> None:
    value = byte_level("qwen2", _CHATML, extra=("<tool_call>", "</tool_call>", "<think>", "</think>"))
    value["normalizer"] = {"type": "NFC"}
    settings = {"pad_token": "<|endoftext|>", "add_bos_token": False}
    write_tokenizer(folder, value, bos=None, eos="<|im_end|>", kind="Qwen2Tokenizer", ends=_CHATML[:1], **settings)


def _qwen_real(folder: Path) -> None:
    """Qwen's published vocabulary, 151,643 tokens, and its control tokens."""
    ranks = tiktoken_ranks(tokenizers_folder() / "dashscope" / "resources" / "qwen.tiktoken")
    value = from_ranks(ranks, "qwen2", _CHATML)
    settings = {"pad_token": "<|endoftext|>", "add_bos_token": False}
    write_tokenizer(folder, value, bos=None, eos="<|im_end|>", kind="Qwen2Tokenizer", ends=_CHATML[:1], **settings)


def _smollm2(folder: Path) -> None:
    """SmolLM2's published vocabulary, as the packaged model has it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_packaged_tokenizer(packaged_fields(), folder, 512, "")


def _smollm3(folder: Path) -> None:
    value = byte_level("llama-bpe", (*_LLAMA3[:2], "<|im_start|>", "<|im_end|>"), extra=("<think>", "</think>"))
    write_tokenizer(folder, value, bos=None, eos="<|im_end|>")


def _phi4(folder: Path) -> None:
    value = byte_level("gpt-4o", ("<|endoftext|>", "<|user|>", "<|end|>", "<|im_start|>"), extra=("<|tool|>",))
    write_tokenizer(folder, value, bos="<|endoftext|>", eos="<|endoftext|>", kind="GPT2Tokenizer", ends=("<|end|>",))


def _mistral(folder: Path) -> None:
    """Mistral's published SentencePiece model, version 3."""
    file = tokenizers_folder() / "mistral_common" / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    value = from_pieces(file, specials=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), spaces="legacy")
    settings = {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    write_tokenizer(folder, value, bos="<s>", eos="</s>", kind="LlamaTokenizer", **settings)
    (folder / "tokenizer.model").write_bytes(file.read_bytes())


def _tekken(folder: Path) -> None:
    """The first 3,000 tokens of Mistral's published Tekken vocabulary behind its control tokens."""
    published = json.loads((tokenizers_folder() / "mistral_common" / "data" / "tekken_240911.json").read_text())
    ranks = [base64.b64decode(entry["token_bytes"]) for entry in published["vocab"][:3000]]
    value = from_ranks(ranks, "tekken", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), specials_first=True)
    value["post_processor"] = add_bos("<s>", 1)
    write_tokenizer(folder, value, bos="<s>", eos="</s>", unk_token="<unk>")


def _gemma(folder: Path) -> None:
    """A SentencePiece model that puts no space first, with Gemma's control tokens (pieces: Mistral's version 1)."""
    file = tokenizers_folder() / "mistral_common" / "data" / "tokenizer.model.v1"
    value = from_pieces(
        file, specials=("<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<unused0>"), spaces="none"
    )
    settings = {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    write_tokenizer(folder, value, bos="<s>", eos="</s>", ends=("<end_of_turn>",), kind="GemmaTokenizer", **settings)
    (folder / "tokenizer.model").write_bytes(file.read_bytes())


_GEMMA = {
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 24,
    "tie_word_embeddings": True,
}
_PHI = {
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 256,
    "num_key_value_heads": 2,
    "hidden_size": 128,
}
CASES = {
    "llama3": Case("Llama", _llama3, {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0}, "llama-bpe", "bfloat16"),
    "llama-tied-bias": Case(
        "Llama", _llama3, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "llama-bpe"
    ),
    "smollm2": Case("Llama", _smollm2, {"tie_word_embeddings": True}, None, "bfloat16"),
    "smollm3": Case(
        "SmolLM3", _smollm3, {"num_hidden_layers": 5, "tie_word_embeddings": True}, "llama-bpe", "bfloat16"
    ),
    "qwen2": Case("Qwen2", _qwen, {"rope_theta": 1000000.0}, "qwen2"),
    "qwen3": Case("Qwen3", _qwen, {"head_dim": 32, "tie_word_embeddings": True}, "qwen2", "bfloat16"),
    "mistral": Case("Mistral", _mistral, {"sliding_window": None}, None, "bfloat16"),
    "mistral-tekken": Case("Mistral", _tekken, {"sliding_window": None, "head_dim": 32}, "tekken"),
    "gemma3": Case("Gemma3Text", _gemma, _GEMMA, None, "bfloat16"),
    "gemma3-linear": Case(
        "Gemma3Text",
        _gemma,
        _GEMMA
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
    ),
    "phi4": Case(
        "Phi3", _phi4, _PHI | {"rope_parameters": _LONGROPE, "tie_word_embeddings": True}, "gpt-4o", "bfloat16"
    ),
    "phi4-untied": Case("Phi3", _phi4, _PHI, "gpt-4o"),
}
SLOW_CASES = {"qwen3-152k": Case("Qwen3", _qwen_real, {"head_dim": 32, "tie_word_embeddings": True}, None, "bfloat16")}


def save_case(folder: Path, case: Case) -> Path:
    """The model's folder: tokenizer, random weights large enough to matter, settings."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case.tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    highest = max([*tokenizer["model"]["vocab"].values(), *(entry["id"] for entry in tokenizer["added_tokens"])])
    settings = {
        "vocab_size": highest + 6,  # rows without a token, as models have them
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": generation["eos_token_id"][0],
    } | case.settings
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.family}Config")(**settings)
    model = getattr(transformers, f"{case.family.removesuffix('Text')}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    model.to(getattr(torch, case.dtype)).save_pretrained(folder)
    # save_pretrained wrote a generation_config of its own.
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
