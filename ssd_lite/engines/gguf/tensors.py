"""What a checkpoint's tensors become in a GGUF: names, row order of llama's q and k, shifted norms, rope factors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ssd_lite.engines.gguf.architecture import Architecture, unsupported
from ssd_lite.engines.gguf.names import COMPUTED, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, to_gguf_name
from ssd_lite.engines.gguf.rope import llama3_factors, longrope_factors, rope_parameters, rotated_size
from ssd_lite.engines.weights.number_formats import Array, convert
from ssd_lite.errors import UserError

Config = Mapping[str, Any]


def gguf_names(architecture: Architecture, config: Config, checkpoint: Iterable[str], where: str) -> dict[str, str]:
    """GGUF name → checkpoint name of every tensor that is written, in the checkpoint's order.

    A tied head is left out. Raises UserError for a tensor without a place in the GGUF and for a missing one.
    """
    tied = bool(architecture.settings(config).get("tie_word_embeddings"))
    names: dict[str, str] = {}
    for name in checkpoint:
        if COMPUTED.search(name) or (tied and name == "lm_head.weight"):
            continue
        target = to_gguf_name(name, architecture)
        if target is None:
            raise unsupported(f"a {architecture.name} model with the tensor {name}", where)
        names[target] = name
    layers = range(int(config["num_hidden_layers"]))
    wanted = ["token_embd", "output_norm", *([] if tied else ["output"])]
    wanted += [f"blk.{layer}.{part}" for layer in layers for part in architecture.parts]
    missing = [name for name in wanted if f"{name}.weight" not in names]
    if missing:
        raise UserError(
            f"{len(missing)} tensors of the model are missing, the first is {missing[0]}.weight (GGUF name).",
            where=where,
            next_step="Fetch or merge the model again.",
        )
    return names


def computed_tensors(architecture: Architecture, config: Config) -> dict[str, Array]:
    """GGUF name → float32 array of the tensors that no checkpoint has: divisors of the rotary frequencies."""
    settings = architecture.settings(config)
    rope = rope_parameters(settings)
    if rope["rope_type"] == "llama3":
        return {ROPE_FREQS: llama3_factors(rope, rotated_size(settings))}
    if rope["rope_type"] == "longrope":
        long, short = longrope_factors(rope)
        return {ROPE_FACTORS_LONG: long, ROPE_FACTORS_SHORT: short}
    return {}


def gguf_blocks(
    architecture: Architecture, config: Config, name: str, blocks: Iterable[Array], stored: str, wanted: str
) -> Iterator[Array]:
    """The blocks of a checkpoint tensor, of the number format `stored`, as its GGUF tensor holds them in `wanted`."""
    heads = int(architecture.settings(config)["num_attention_heads"])
    kv_heads = int(architecture.settings(config).get("num_key_value_heads") or heads)
    reorder = heads_to_reorder(architecture, name, heads, kv_heads)
    shifted = architecture.shifted_norms and name.endswith("norm.weight")
    for piece in blocks if reorder is None else interleave_rows(blocks, reorder):
        if shifted:
            piece = convert(convert(piece, stored, "F32", name) + np.float32(1), "F32", wanted, name)
        else:
            piece = convert(piece, stored, wanted, name)
        yield piece


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
