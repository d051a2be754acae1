"""The numbers of a model: config.json ↔ GGUF metadata, and the settings that a GGUF does not express."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_lite.engines.gguf.architecture import Architecture, unsupported
from ssd_lite.engines.gguf.rope import (
    head_size,
    longrope_attention_factor,
    rope_parameters,
    rotated_size,
    shortest,
)

Config = Mapping[str, Any]
# Settings of rotary scalings whose effect llama.cpp computes otherwise than transformers.
_ROPE_EXTRAS = ("attention_factor", "attn_factor", "mscale", "mscale_all_dim", "extrapolation_factor")
# llama.cpp knows Gemma 3's layers by their number: five with a window, then one without.
_GEMMA_PERIOD = 6
_GEMMA_27B_LAYERS = 62


def check_convertible(architecture: Architecture, config: Config, where: str) -> None:
    """Raise UserError for settings of a known architecture that GGUF or llama.cpp does not express."""
    settings = architecture.settings(config)
    activation = settings.get("hidden_activation") or settings.get("hidden_act") or architecture.activation
    if activation != architecture.activation:
        raise unsupported(f"a model with the activation {activation}", where)
    rope = rope_parameters(settings)
    if rope["rope_type"] not in architecture.rope_types:
        raise unsupported(f"rotary scaling of the type {rope['rope_type']!r}", where)
    extras = [key for key in _ROPE_EXTRAS if rope.get(key) is not None]
    if extras:
        raise unsupported(f"rotary scaling with {extras[0]}", where)
    if rotated_size(settings) != head_size(settings) and architecture.name != "phi3":
        raise unsupported("a model with partly rotated heads", where)
    reason = _odd_attention(architecture, settings)
    if reason:
        raise unsupported(reason, where)


def _odd_attention(architecture: Architecture, settings: Config) -> str | None:
    if architecture.name == "gemma3":
        return _odd_gemma(settings)
    # Where a config.json switches the window on and gives no length, transformers has a length of its own.
    window = settings.get("sliding_window") or (0 if settings.get("use_sliding_window") else None)
    always = architecture.class_name in ("MistralForCausalLM", "Phi3ForCausalLM")
    used = window is not None and (always or bool(settings.get("use_sliding_window")))
    reached = used and int(window or 0) < int(settings["max_position_embeddings"])
    if reached or "sliding_attention" in (settings.get("layer_types") or []):
        return "a model with sliding-window attention (llama.cpp would attend to everything)"
    if architecture.name == "smollm3":
        layers = int(settings["num_hidden_layers"])
        interval = int(settings["no_rope_layer_interval"])
        rotated = settings.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
        if list(map(bool, rotated)) != [(i + 1) % 4 != 0 for i in range(layers)]:
            return "a SmolLM3 whose layers without rotary positions are not every fourth"
    return None


def _odd_gemma(settings: Config) -> str | None:
    layers, period = int(settings["num_hidden_layers"]), int(settings["sliding_window_pattern"])
    kinds = settings.get("layer_types") or [
        "sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)
    ]
    if [kind == "sliding_attention" for kind in kinds] != [(i + 1) % _GEMMA_PERIOD != 0 for i in range(layers)]:
        return "a Gemma whose full-attention layers are not every sixth"
    if settings.get("use_bidirectional_attention") or settings.get("attn_logit_softcapping"):
        return "a Gemma with bidirectional attention or capped attention"
    size = head_size(settings)
    if layers == _GEMMA_27B_LAYERS:  # llama.cpp takes it for the 27B, whose scale is another
        size = int(settings["hidden_size"]) // int(settings["num_attention_heads"])
    if int(settings["query_pre_attn_scalar"]) != size:
        return f"a Gemma with query_pre_attn_scalar {settings['query_pre_attn_scalar']}"
    return None


def metadata(architecture: Architecture, config: Config) -> dict[str, int | float | str]:
    """GGUF key (without the architecture's name in front) → value. Integers are uint32, floats float32."""
    settings = architecture.settings(config)
    heads = int(settings["num_attention_heads"])
    rope = rope_parameters(settings)
    values: dict[str, int | float | str] = {
        "context_length": int(settings["max_position_embeddings"]),
        "embedding_length": int(settings["hidden_size"]),
        "block_count": int(settings["num_hidden_layers"]),
        "feed_forward_length": int(settings["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(settings.get("num_key_value_heads") or heads),
        "attention.layer_norm_rms_epsilon": float(settings.get("rms_norm_eps", 1e-6)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if settings.get("head_dim") or architecture.name == "llama":
        values |= {"attention.key_length": head_size(settings), "attention.value_length": head_size(settings)}
    if rope["rope_type"] in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings") or settings["max_position_embeddings"]
        values["rope.scaling.original_context_length"] = int(original)
        betas = {key: rope[key] for key in ("beta_fast", "beta_slow") if rope.get(key) is not None}
        values |= {f"rope.scaling.yarn_{key}": float(value) for key, value in betas.items()}
    return values | _own_metadata(architecture, settings, rope)


def _own_metadata(architecture: Architecture, settings: Config, rope: Config) -> dict[str, int | float | str]:
    match architecture.name:
        case "llama" | "smollm3":
            return {"vocab_size": int(settings["vocab_size"]), "rope.dimension_count": rotated_size(settings)}
        case "gemma3":
            capped = float(settings.get("final_logit_softcapping") or 0)
            return {
                "attention.sliding_window": int(settings["sliding_window"]),
                "rope.freq_base_swa": float(rope["sliding_theta"]),
                **({"final_logit_softcapping": capped} if capped else {}),
            }
        case "phi3":
            context = int(settings["max_position_embeddings"])
            longrope = rope["rope_type"] == "longrope"
            return {
                "rope.dimension_count": rotated_size(settings),
                "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
                # 0 says that this is not Phi-3, whose window llama.cpp would warn about.
                "attention.sliding_window": int(settings.get("sliding_window") or 0),
                **({"rope.scaling.attn_factor": longrope_attention_factor(rope, context)} if longrope else {}),
            }
    return {}


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
        "rms_norm_eps": shortest(values["attention.layer_norm_rms_epsilon"]),
        "rope_theta": shortest(values.get("rope.freq_base", 10000.0)),
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
        config["rope_scaling"] = {"rope_type": scaling, "factor": shortest(values["rope.scaling.factor"])}
        if "rope.scaling.original_context_length" in values:
            original = int(values["rope.scaling.original_context_length"])
            config["rope_scaling"]["original_max_position_embeddings"] = original
    return config
