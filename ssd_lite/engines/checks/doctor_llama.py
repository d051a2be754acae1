"""llama.cpp at work, for `ssd-lite doctor`: how it was built, and a tiny model quantised and read back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ssd_lite.engines.gguf.quantise import quantise
from ssd_lite.engines.llama_log import llama_library
from ssd_lite.errors import MissingLibraryError

# Root-mean-square errors of random normal weights are 0.5 and 7 per cent; limits of twice that.
_LIMITS = {"q8_0": 0.01, "q4_k_m": 0.15}
_WIDTH, _CONTEXT, _HEADS = 256, 64, 4
_SPECIAL = ["<unk>", "<s>", "</s>"]
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # llama.cpp's token types


def llama_facts() -> dict[str, Any]:
    """Whether it can put layers on a card, and what went wrong in quantising: `error` is "" where all is well."""
    library = llama_library()
    with tempfile.TemporaryDirectory(prefix="ssd-lite-doctor-") as folder:
        error = quantising_error(Path(folder))
    return {"on_card": bool(library.llama_supports_gpu_offload()), "error": error}


def quantising_error(folder: Path) -> str:
    """Write a one-layer model, quantise it by `quantise`, compare every tensor: what is wrong, or ""."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise MissingLibraryError("gguf", needed_for="Writing a GGUF", extra="gguf") from error

    source = folder / "tiny-f32.gguf"
    weights = _write_tiny(source)
    for name, limit in _LIMITS.items():
        out = folder / f"tiny-{name}.gguf"
        quantise(source, out, name, threads=1)
        found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(out).tensors}
        if found.keys() != weights.keys():
            return f"{name} has other tensors than the model"
        if out.stat().st_size > source.stat().st_size / 2:
            return f"{name} is not smaller"
        for tensor, exact in weights.items():
            off = float(np.linalg.norm(found[tensor] - exact) / np.linalg.norm(exact))
            if not off < limit:
                return f"{tensor} is off by {off:.2g} in {name}"
    return ""


def _write_tiny(path: Path) -> dict[str, Any]:
    """A Llama of one layer with random weights and a vocabulary of bytes; the weights by name."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    weights = _weights(len(tokens))
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _weights(vocabulary: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    square = [f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")]
    shapes = {
        "token_embd.weight": (vocabulary, _WIDTH),
        **dict.fromkeys((*square, "blk.0.ffn_down.weight"), (_WIDTH, _WIDTH)),
        "output.weight": (vocabulary, _WIDTH),
        **dict.fromkeys(("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"), (_WIDTH,)),
    }
    return {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
