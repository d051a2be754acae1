"""Names of tensors: checkpoint ↔ GGUF, of the architectures that are written."""

from __future__ import annotations

import re

from ssd_lite.engines.gguf.architecture import Architecture

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# GGUF architecture → the names that differ there. Phi keeps its fused matrices, gate before up, in GGUF too.
_DIFFERENT = {
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
}
# Tensors that a checkpoint or a GGUF may carry and that are computed from the settings instead.
COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$|^rope_(freqs|factors_long|factors_short)\.weight$")
ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def to_gguf_name(name: str, architecture: Architecture) -> str | None:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`; None for what has no place in its GGUF."""
    body, _, ending = name.rpartition(".")
    if ending not in ("weight", "bias"):
        return None
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", body)
    if layer is None:
        short = _OUTSIDE.get(body)
        return f"{short}.{ending}" if short and ending == "weight" else None
    short = (_IN_LAYER | _DIFFERENT.get(architecture.name, {})).get(layer[2])
    places = architecture.parts if ending == "weight" else architecture.biases
    return f"blk.{layer[1]}.{short}.{ending}" if short in places else None


def to_checkpoint_name(name: str, architecture: Architecture) -> str | None:
    """`blk.3.ffn_up.weight` → `model.layers.3.mlp.up_proj.weight`; None for a name without a place in a checkpoint."""
    body, _, ending = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", body)
    if layer is None:
        long = next((long for long, short in _OUTSIDE.items() if short == body), None)
        return f"{long}.{ending}" if long else None
    names = _IN_LAYER | _DIFFERENT.get(architecture.name, {})
    long = next((long for long, short in reversed(names.items()) if short == layer[2]), None)
    return f"model.layers.{layer[1]}.{long}.{ending}" if long else None
