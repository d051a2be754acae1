"""Small random models and rows that the training tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from ssd_lite.engines.training.batching import TrainingRow

VOCABULARY = 300


def save_tiny_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A random two-layer model as a real safetensors folder."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    } | changes
    config = Qwen3Config(head_dim=16, **shape) if family == "qwen3" else LlamaConfig(**shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def random_rows(count: int, seed: int = 0) -> list[TrainingRow]:
    """Rows of random ids; a prompt has 3 to 9 tokens, a completion 4 to 20."""
    draw = np.random.default_rng(seed)
    return [
        TrainingRow(
            tuple(draw.integers(1, VOCABULARY, draw.integers(3, 10)).tolist()),
            tuple(draw.integers(1, VOCABULARY, draw.integers(4, 21)).tolist()),
        )
        for _ in range(count)
    ]
