"""Rotary positions: their settings in a config.json of transformers 4 or 5, and scalings that GGUF has as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.errors import UserError

Config = Mapping[str, Any]


def rope_parameters(config: Config) -> dict[str, Any]:
    """Rotary settings of the full-attention layers: always `rope_type` and `rope_theta`, then those of the type.

    `sliding_theta` is there where sliding layers have a base of their own (Gemma 3).
    """
    inside = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    sliding = inside.pop("sliding_attention", None) or {}
    if "full_attention" in inside:
        inside = dict(inside["full_attention"])
    inside["rope_type"] = inside.pop("type", None) or inside.get("rope_type") or "default"
    if inside["rope_type"] == "su":  # longrope's first name
        inside["rope_type"] = "longrope"
    inside.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config.get(key) is not None:
            inside.setdefault(key, config[key])
    theta = sliding.get("rope_theta") or config.get("rope_local_base_freq")
    return {**inside, "sliding_theta": float(theta)} if theta else inside


def head_size(config: Config) -> int:
    """Numbers in one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotated_size(config: Config) -> int:
    """Numbers of a head that are rotated."""
    return int(head_size(config) * float(rope_parameters(config).get("partial_rotary_factor") or 1.0))


def llama3_factors(rope: Config, size: int) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies, [size/2]: Llama 3.1's piecewise scaling (transformers' type `llama3`)."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    # float32 in this order, as in llama.cpp's converter: the results are equal to the last bit.
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    wavelengths = np.float32(2 * math.pi) / (np.float32(1) / np.float32(rope["rope_theta"]) ** exponents)
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    return factors.astype(np.float32)


def llama3_from_factors(factors: NDArray[np.float32], theta: float, where: str) -> dict[str, Any]:
    """The `llama3` rope scaling whose factors these are, [head size/2].

    A GGUF keeps only the factors. All published models share low 1 and high 4, so the original context is tried among
    powers of two. Raises UserError if none fits.
    """
    for exponent in range(10, 18):
        rope = {
            "rope_type": "llama3",
            "factor": shortest(float(factors.max())),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2**exponent,
        }
        if np.allclose(llama3_factors({**rope, "rope_theta": theta}, 2 * len(factors)), factors, rtol=1e-4):
            return rope
    raise UserError(
        "its rotary factors are not those of a Llama 3 scaling.",
        where=where,
        next_step="Name the model's Hugging Face folder or Hub id instead.",
    )


def longrope_factors(rope: Config) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Divisors of the rotary frequencies beyond and within the original context, [rotated size / 2] each."""
    return np.array(rope["long_factor"], dtype=np.float32), np.array(rope["short_factor"], dtype=np.float32)


def longrope_attention_factor(rope: Config, context_length: int) -> float:
    """longrope's factor on q and k: sqrt(1 + ln(s) / ln(original)), s = context / original (arXiv 2402.13753)."""
    original = int(rope["original_max_position_embeddings"])
    scale = context_length / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(np.format_float_scientific(np.float32(value)))
