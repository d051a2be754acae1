"""Memory of decoding by term, as the samplers of engines/sampling/ do it, and of merging and exporting."""

from __future__ import annotations

from collections.abc import Sequence

from ssd_lite.plan.shapes import Shape
from ssd_lite.plan.training_memory import CONTEXT_BYTES, FRAGMENTATION, Terms

# engines/sampling/llama_cpp_sampler.py: no more cache than this; sequences wait instead.
KV_BUDGET_BYTES = 2 * 2**30
LLAMA_MICRO_BATCH, LLAMA_PADDING = 512, 256
# Imported libraries of a process (measured on Linux): transformers, llama.cpp, numpy alone.
HF_IMPORTS_BYTES, LLAMA_IMPORTS_BYTES, NUMPY_IMPORTS_BYTES = 334 * 2**20, 42 * 2**20, 32 * 2**20
# engine: auto asks torch for a card, also where llama.cpp then samples.
TORCH_IMPORTS_BYTES = 187 * 2**20
# Host side of a process that works on a card: libraries of CUDA and its pinned buffers. A guess.
CARD_HOST_BYTES = 3 * 2**30
# vLLM's default --gpu-memory-utilization, and what its compiled graphs and activations take beside the cache. A guess.
SERVER_SHARE, SERVER_WORKSPACE_BYTES = 0.9, 3 * 2**29
# Bits a weight in our GGUF types, engines/gguf/types.py (at most).
GGUF_BITS = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 6.0, "q5_k_s": 5.9, "q5_1": 6.2,
    "q5_0": 5.8, "q4_k_m": 5.3, "q4_k_s": 5.1, "q4_1": 5.4, "q4_0": 5.0, "iq4_nl": 5.0, "iq4_xs": 5.0, "q3_k_l": 4.8,
    "q3_k_m": 4.5, "q3_k_s": 4.2, "iq3_m": 4.5, "iq3_s": 4.3, "iq3_xs": 4.2, "iq3_xxs": 4.0, "q2_k": 4.0,
    "q2_k_s": 4.0, "iq2_m": 3.8, "iq2_s": 3.7, "iq2_xs": 3.6, "iq2_xxs": 3.4, "iq1_m": 3.2, "iq1_s": 3.1,
    "tq2_0": 3.6, "tq1_0": 3.3, "q2_0": 3.6, "q1_0": 2.8, "mxfp4_moe": 8.5,
}  # fmt: skip
# engines/weights/safetensors_file.py: numbers in a block; copies of a block in float32 while merging.
BLOCK_NUMBERS, PLAIN_BLOCKS, ADAPTED_BLOCKS = 8 * 2**20, 3, 5
# engines/gguf/stream.py: copies of a block while writing several types; bytes of a vocabulary's token (rounded up).
EXPORT_BLOCKS, EXPORT_TOKEN_BYTES = 3, 1024
IMATRIX_LENGTH = 2048
"""Tokens of a text that an importance matrix reads at most, engines/gguf/imatrix.py."""


def gguf_bytes(shape: Shape, gguf_type: str) -> int:
    """Size of a GGUF of this type, at most."""
    return int(shape.parameters * GGUF_BITS[gguf_type] / 8)


def hf_terms(shape: Shape, batch: int, prompt: int, length: int, *, on_card: bool) -> Terms:
    """A left-padded batch under `generate`: weights, cache of `length` tokens a row, logits in float32, the prefill.

    `length` is the longest prompt, `prompt`, plus max_new_tokens: the cache grows up to it. Growing copies one layer's
    cache; the scores of a step exist in four float32 copies.
    """
    number = 2 if on_card else 4
    cache = batch * length * shape.kv_numbers_per_token * number
    prefill = batch * prompt * number * (3 * shape.intermediate + 4 * shape.hidden + 2 * shape.query_width)
    variable = cache + max(prefill, cache // shape.layers) + 4 * 4 * batch * shape.vocabulary
    return {
        "weights": shape.parameters * number,
        "kv_cache": cache,
        "logits": 4 * 4 * batch * shape.vocabulary,
        "workspace": max(prefill, cache // shape.layers)
        + (CONTEXT_BYTES + int(FRAGMENTATION * variable) if on_card else HF_IMPORTS_BYTES),
    }


def llama_slots(shape: Shape, batch: int, length: int) -> int:
    """Sequences that llama.cpp decodes at once within the budget of the cache."""
    return max(1, min(batch, KV_BUDGET_BYTES // (2 * shape.kv_numbers_per_token * length)))


def llama_terms(shape: Shape, batch: int, length: int, gguf_type: str, *, on_card: bool) -> Terms:
    """A GGUF under llama.cpp, all layers on the card where there is one; the F16 cache is set aside at the start."""
    padded = -(-length // LLAMA_PADDING) * LLAMA_PADDING
    work = LLAMA_MICRO_BATCH * 4 * (4 * shape.intermediate + 8 * shape.hidden)
    logits = 4 * shape.vocabulary * (LLAMA_MICRO_BATCH if on_card else batch)  # memory of a host counts when touched
    return {
        "weights": gguf_bytes(shape, gguf_type),
        "kv_cache": llama_slots(shape, batch, length) * padded * shape.kv_numbers_per_token * 2,
        "logits": logits,
        "workspace": work + (CONTEXT_BYTES if on_card else LLAMA_IMPORTS_BYTES),
    }


def server_slots(shape: Shape, batch: int, mean: float, weights: int, memory: int) -> float:
    """Completions that a server decodes at once: those whose cache, in pages as it grows, fits beside the weights."""
    room = SERVER_SHARE * memory - weights - SERVER_WORKSPACE_BYTES
    return min(float(batch), max(1.0, room / (2 * shape.kv_numbers_per_token * mean)))


def server_terms(shape: Shape, batch: int, length: int, mean: float, weights: int, memory: int) -> Terms:
    """An inference server on a card; `mean` tokens a completion with its prompt, `length` the longest.

    It takes SERVER_SHARE of the card whatever it needs; here stands what it cannot do without.
    """
    slots = server_slots(shape, batch, mean, weights, memory)
    return {
        "weights": weights,
        "kv_cache": int(2 * shape.kv_numbers_per_token * max(length, slots * mean)),
        "logits": 4 * 4 * batch * shape.vocabulary,
        "workspace": CONTEXT_BYTES + SERVER_WORKSPACE_BYTES,
    }


def merge_host_bytes(shape: Shape) -> int:
    """Blocks of one tensor in float32 and numpy; an adapter's two matrices of it are small beside them."""
    plain = min(shape.embedding_parameters, BLOCK_NUMBERS)
    adapted = min(max(width * out for width, out in shape.modules.values()), BLOCK_NUMBERS)
    return NUMPY_IMPORTS_BYTES + 4 * (PLAIN_BLOCKS * plain + ADAPTED_BLOCKS * adapted)


def imatrix_host_bytes(shape: Shape) -> int:
    """llama.cpp reading one text of up to 2,048 tokens with a q8_0, with the logits of every token of a batch."""
    terms = llama_terms(shape, 1, IMATRIX_LENGTH, "q8_0", on_card=False)
    return sum(terms.values()) + 4 * LLAMA_MICRO_BATCH * shape.vocabulary


def export_host_bytes(shape: Shape, types: Sequence[str]) -> int:
    """Reading, rounding and quantising block by block, whatever the types, and the vocabulary as Python holds it."""
    libraries = NUMPY_IMPORTS_BYTES
    if any(name not in ("f32", "f16", "bf16") for name in types):
        libraries += LLAMA_IMPORTS_BYTES
    blocks = 4 * EXPORT_BLOCKS * min(shape.embedding_parameters, BLOCK_NUMBERS)
    return libraries + blocks + EXPORT_TOKEN_BYTES * shape.vocabulary
