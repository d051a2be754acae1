"""The numbers of a model: config.json ↔ GGUF metadata, rotary scaling included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.engines.gguf_names import Architecture, unsupported
from ssd_lite.errors import UserError

Config = Mapping[str, Any]


def rope_parameters(config: Config) -> dict[str, Any]:
    """Rotary settings of a config.json of transformers 4 or 5: always `rope_type` and `rope_theta`, then its own."""
    inside = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    inside["rope_type"] = inside.pop("type", None) or inside.get("rope_type") or "default"
    inside.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    return inside


def head_size(config: Config) -> int:
    """Numbers in one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def check_convertible(config: Config, where: str) -> None:
    """Raise UserError for settings of a known architecture that GGUF or llama.cpp does not express."""
    if config.get("hidden_act", "silu") != "silu":
        raise unsupported(f"a model with the activation {config['hidden_act']}", where)
    sliding = config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or [])
    if sliding:
        raise unsupported("a model with sliding-window attention", where)
    rope = rope_parameters(config)
    if rope["rope_type"] not in ("default", "linear", "yarn", "llama3"):
        raise unsupported(f"rotary scaling of the type {rope['rope_type']!r}", where)
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise unsupported("a model with partly rotated heads", where)


def metadata(architecture: Architecture, config: Config) -> dict[str, int | float | str]:
    """GGUF key (without the architecture's name in front) → value. Integers are uint32, floats float32."""
    heads = int(config["num_attention_heads"])
    rope = rope_parameters(config)
    values: dict[str, int | float | str] = {
        "vocab_size": int(config["vocab_size"]),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": head_size(config),
    }
    if config.get("head_dim"):
        values |= {"attention.key_length": head_size(config), "attention.value_length": head_size(config)}
    if rope["rope_type"] in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        values["rope.scaling.original_context_length"] = int(original)
    return values


def llama3_factors(rope: Config, size: int) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies, [size/2]: Llama 3.1's piecewise scaling (transformers' type `llama3`)."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    wavelengths = 2 * math.pi * np.float32(rope["rope_theta"]) ** exponents
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    return factors.astype(np.float32)


def config_from_metadata(architecture: Architecture, fields: Config, tensor_names: set[str]) -> dict[str, Any]:
    """A config.json (keys that transformers 4 and 5 both read) from GGUF metadata without the rotary factors tensor."""
    prefix = architecture.name + "."
    values = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    heads, hidden = int(values["attention.head_count"]), int(values["embedding_length"])
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(values["feed_forward_length"]),
        "num_hidden_layers": int(values["block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(values.get("attention.head_count_kv", heads)),
        "max_position_embeddings": int(values["context_length"]),
        "rms_norm_eps": _shortest(values["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(values.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "attention_bias": "blk.0.attn_q.bias" in tensor_names,
    }
    size = int(values.get("attention.key_length") or values.get("rope.dimension_count") or hidden // heads)
    if "attention.key_length" in values or size * heads != hidden:
        config["head_dim"] = size
    if architecture.name == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in tensor_names
    scaling = values.get("rope.scaling.type", "none")
    if scaling in ("linear", "yarn"):
        config["rope_scaling"] = {"rope_type": scaling, "factor": _shortest(values["rope.scaling.factor"])}
        if "rope.scaling.original_context_length" in values:
            original = int(values["rope.scaling.original_context_length"])
            config["rope_scaling"]["original_max_position_embeddings"] = original
    return config


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(np.format_float_scientific(np.float32(value)))


def llama3_from_factors(factors: NDArray[np.float32], theta: float, where: str) -> dict[str, Any]:
    """The `llama3` rope scaling whose factors these are, [head size/2].

    A GGUF keeps only the factors. All published models share low 1 and high 4, so the original context is tried among
    powers of two. Raises UserError if none fits.
    """
    for exponent in range(10, 18):
        rope = {
            "rope_type": "llama3",
            "factor": _shortest(float(factors.max())),
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
