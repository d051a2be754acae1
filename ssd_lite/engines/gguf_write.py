"""A Hugging Face folder as a GGUF in 16 or 32 bits, written block by block; llama, qwen2 and qwen3."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssd_lite.atomic import fsync_folder
from ssd_lite.engines.gguf_names import (
    COMPUTED,
    ROPE_FREQS,
    Architecture,
    architecture_of,
    heads_to_reorder,
    interleave_rows,
    to_gguf_name,
    unsupported,
)
from ssd_lite.engines.gguf_settings import check_convertible, head_size, llama3_factors, metadata, rope_parameters
from ssd_lite.engines.gguf_vocabulary import Vocabulary, read_vocabulary
from ssd_lite.engines.model_cache import check_space
from ssd_lite.engines.model_folder import ModelFolder
from ssd_lite.engines.number_formats import CARRIERS, Array, convert
from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.recipe_section import Decoding

# Our type → (safetensors' name, llama.cpp's file type).
PLAIN_TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}
_TOKEN_ID_KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "pad": "padding", "unk": "unknown"}


@dataclass
class _Plan:
    """What will be written: GGUF name → (checkpoint name or None, number format, shape), and the computed arrays."""

    entries: dict[str, tuple[str | None, str, tuple[int, ...]]] = field(default_factory=dict)
    computed: dict[str, Array] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(CARRIERS[dtype][0] * int(np.prod(shape)) for _, dtype, shape in self.entries.values())


def write_gguf(folder: Path, out: Path, gguf_type: str, *, name: str = "", decoding: Decoding | None = None) -> None:
    """Write `out` ("f32", "f16" or "bf16"; one-dimensional tensors stay float32); it appears whole or not at all.

    Raises UserError for what cannot be converted, naming llama.cpp's own converter, and for a full disk.
    """
    model = ModelFolder(folder)
    architecture = architecture_of(model.config.get("architectures") or [], str(folder))
    check_convertible(model.config, str(folder))
    vocabulary = read_vocabulary(folder, model.config)
    plan = _plan(model, architecture, PLAIN_TYPES[gguf_type][0])
    check_space(out.parent, plan.nbytes, f"the {gguf_type} GGUF")
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    writer = _writer(architecture.name)
    _add_settings(writer, architecture, model, gguf_type, name or folder.name)
    _add_vocabulary(writer, vocabulary)
    if decoding is not None:
        _add_decoding(writer, decoding)
    try:
        _write_file(writer, part, model, architecture, plan)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}.", where=str(out), next_step="Make room or name another folder."
        ) from error
    os.replace(part, out)
    fsync_folder(out.parent)


def _writer(architecture: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingLibraryError("gguf", needed_for="Writing a GGUF", extra="gguf") from error
    return gguf.GGUFWriter(None, architecture)


def _plan(model: ModelFolder, architecture: Architecture, dtype: str) -> _Plan:
    plan = _Plan()
    tied = bool(model.config.get("tie_word_embeddings"))
    for name, info in model.tensors.items():
        if COMPUTED.search(name) or (tied and name == "lm_head.weight"):
            continue
        target = to_gguf_name(name)
        if target is None:
            raise unsupported(f"a {architecture.name} model with the tensor {name}", str(model.folder))
        plan.entries[target] = (name, dtype if len(info.shape) > 1 else "F32", info.shape)
    _check_complete(plan, model, architecture, tied)
    rope = rope_parameters(model.config)
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(rope, head_size(model.config))
        plan.computed[ROPE_FREQS] = factors
        plan.entries[ROPE_FREQS] = (None, "F32", factors.shape)
    return plan


def _check_complete(plan: _Plan, model: ModelFolder, architecture: Architecture, tied: bool) -> None:
    parts = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    parts += ["attn_q_norm", "attn_k_norm"] if architecture.head_norms else []
    layers = range(int(model.config["num_hidden_layers"]))
    wanted = [
        "token_embd",
        "output_norm",
        *([] if tied else ["output"]),
        *(f"blk.{i}.{p}" for i in layers for p in parts),
    ]
    missing = [name for name in wanted if f"{name}.weight" not in plan.entries]
    if missing:
        raise UserError(
            f"{len(missing)} tensors of the model are missing, the first is {missing[0]}.weight (GGUF name).",
            where=str(model.folder),
            next_step="Fetch or merge the model again.",
        )


def _add_settings(writer: Any, architecture: Architecture, model: ModelFolder, gguf_type: str, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(PLAIN_TYPES[gguf_type][1])
    writer.add_quantization_version(2)
    for key, value in metadata(architecture, model.config).items():
        full = f"{architecture.name}.{key}"
        match value:
            case str():
                writer.add_string(full, value)
            case float():
                writer.add_float32(full, value)
            case int():
                writer.add_uint32(full, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for key, index in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{_TOKEN_ID_KEYS[key]}_token_id", index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _add_decoding(writer: Any, decoding: Decoding) -> None:
    writer.add_sampling_temp(decoding.temperature)
    writer.add_sampling_top_k(decoding.top_k)
    writer.add_sampling_top_p(decoding.top_p)
    writer.add_sampling_min_p(decoding.min_p)
    writer.add_sampling_penalty_repeat(1.0)


def _write_file(writer: Any, part: Path, model: ModelFolder, architecture: Architecture, plan: _Plan) -> None:
    import gguf

    raw = {
        "F32": gguf.GGMLQuantizationType.F32,
        "F16": gguf.GGMLQuantizationType.F16,
        "BF16": gguf.GGMLQuantizationType.BF16,
    }
    for target, (_, dtype, shape) in plan.entries.items():
        nbytes = CARRIERS[dtype][0] * int(np.prod(shape))
        writer.add_tensor_info(target, shape, np.dtype(np.float32), nbytes, raw_dtype=raw[dtype])
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    for target, (name, dtype, shape) in plan.entries.items():
        writer.write_padding(file, file.tell())
        begin = file.tell()
        for piece in _pieces(model, architecture, name, dtype) if name else [plan.computed[target]]:
            file.write(np.ascontiguousarray(piece, dtype=CARRIERS[dtype][1]).data)
        if file.tell() - begin != CARRIERS[dtype][0] * int(np.prod(shape)):
            raise ValueError(f"{target}: {file.tell() - begin} bytes written, not those of {dtype} {shape}")
    writer.write_padding(file, file.tell())
    file.flush()
    os.fsync(file.fileno())
    writer.close()


def _pieces(model: ModelFolder, architecture: Architecture, name: str, dtype: str) -> Iterator[Array]:
    config: Mapping[str, Any] = model.config
    heads = int(config["num_attention_heads"])
    blocks = model.blocks(name)
    reorder = heads_to_reorder(architecture, name, heads, int(config.get("num_key_value_heads") or heads))
    for piece in blocks if reorder is None else interleave_rows(blocks, reorder):
        yield convert(piece, model.tensors[name].dtype, dtype, name)
