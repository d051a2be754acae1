"""The architectures this program converts: checkpoint tensor names ↔ GGUF names, and llama's q/k row order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ssd_lite.engines.number_formats import Array
from ssd_lite.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """One architecture: its GGUF name, its names in transformers, and what sets it apart from plain llama.

    `permuted`: q and k rows are stored pairwise interleaved in GGUF. `head_norms`: q and k are normalised per head.
    """

    name: str
    class_name: str
    model_type: str
    permuted: bool = False
    head_norms: bool = False


ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM", "llama", permuted=True),
    Architecture("qwen2", "Qwen2ForCausalLM", "qwen2"),
    Architecture("qwen3", "Qwen3ForCausalLM", "qwen3", head_norms=True),
)
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
_OUTSIDE_BACK = {short: long for long, short in _OUTSIDE.items()}
_IN_LAYER_BACK = {short: long for long, short in _IN_LAYER.items()}
# Tensors that a checkpoint or a GGUF may carry and that are computed from the settings instead.
COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$|^rope_freqs\.weight$")
ROPE_FREQS = "rope_freqs.weight"


def architecture_of(class_names: Iterable[str], where: str) -> Architecture:
    """The architecture of a config.json. Raises UserError that names llama.cpp's own converter."""
    names = list(class_names)
    for architecture in ARCHITECTURES:
        if architecture.class_name in names:
            return architecture
    raise unsupported(f"the architecture {', '.join(names) or 'of this model'}", where)


def unsupported(what: str, where: str) -> UserError:
    """The error for a model this program cannot write as GGUF, with the command that can."""
    known = ", ".join(a.class_name for a in ARCHITECTURES)
    return UserError(
        f"{what} cannot be written as GGUF here (known: {known}).",
        where=where,
        next_step="Use llama.cpp's own converter: "
        f"python convert_hf_to_gguf.py {where} --outtype bf16 --outfile model-bf16.gguf",
    )


def gguf_architecture(name: str, where: str) -> Architecture:
    """The architecture of a GGUF's `general.architecture`. Raises UserError if it is not known here."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise UserError(
        f"the GGUF has the architecture {name!r}; known here: {', '.join(a.name for a in ARCHITECTURES)}.",
        where=where,
        next_step="Name the model's Hugging Face folder or Hub id instead.",
    )


def to_gguf_name(name: str) -> str | None:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`; None for a name without a place in GGUF."""
    body, _, ending = name.rpartition(".")
    if ending not in ("weight", "bias"):
        return None
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", body)
    if layer:
        short = _IN_LAYER.get(layer[2])
        return f"blk.{layer[1]}.{short}.{ending}" if short else None
    short = _OUTSIDE.get(body)
    return f"{short}.{ending}" if short else None


def to_checkpoint_name(name: str) -> str | None:
    """`blk.3.ffn_up.weight` → `model.layers.3.mlp.up_proj.weight`; None for a name without a place in a checkpoint."""
    body, _, ending = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", body)
    if layer:
        long = _IN_LAYER_BACK.get(layer[2])
        return f"model.layers.{layer[1]}.{long}.{ending}" if long else None
    long = _OUTSIDE_BACK.get(body)
    return f"{long}.{ending}" if long else None


def heads_to_reorder(architecture: Architecture, name: str, heads: int, kv_heads: int) -> int | None:
    """Number of heads whose rows change order between checkpoint and GGUF for this checkpoint name, or None."""
    if not architecture.permuted:
        return None
    if re.search(r"\.self_attn\.q_proj\.(weight|bias)$", name):
        return heads
    return kv_heads if re.search(r"\.self_attn\.k_proj\.(weight|bias)$", name) else None


def interleave_rows(blocks: Iterable[Array], heads: int) -> Iterator[Array]:
    """Checkpoint rows (first half, second half of each head) → GGUF rows (pairs); a whole q or k at once.

    The two are llama's two ways to lay out rotary pairs: i with i + d/2, or 2i with 2i + 1.
    """
    whole = np.concatenate(list(blocks))
    yield whole.reshape(heads, 2, len(whole) // heads // 2, *whole.shape[1:]).swapaxes(1, 2).reshape(whole.shape)


def separate_rows(blocks: Iterable[Array], heads: int) -> Iterator[Array]:
    """GGUF rows → checkpoint rows; undoes `interleave_rows`."""
    whole = np.concatenate(list(blocks))
    yield whole.reshape(heads, len(whole) // heads // 2, 2, *whole.shape[1:]).swapaxes(1, 2).reshape(whole.shape)
