"""A GGUF as a Hugging Face folder that can be trained: dequantised tensor by tensor, with config and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite import __version__
from ssd_lite.atomic import write_json
from ssd_lite.engines.gguf.architecture import Architecture, gguf_architecture
from ssd_lite.engines.gguf.names import COMPUTED, ROPE_FREQS, to_checkpoint_name
from ssd_lite.engines.gguf.rope import llama3_from_factors
from ssd_lite.engines.gguf.settings import config_from_metadata
from ssd_lite.engines.gguf.tensors import heads_to_reorder, separate_rows
from ssd_lite.engines.gguf.tokenizer import write_tokenizer
from ssd_lite.engines.weights.model_cache import check_space
from ssd_lite.engines.weights.model_folder import SINGLE_FILE, SOURCE_FILE
from ssd_lite.engines.weights.number_formats import CARRIERS, TORCH_NAMES, Array, from_float32
from ssd_lite.engines.weights.safetensors_file import rows_in_a_block, write_safetensors
from ssd_lite.errors import MissingLibraryError, UserError

# Up to so many parameters a folder is float32: exact for every GGUF type, and small enough. Above, bfloat16.
FLOAT32_LIMIT = 1_000_000_000


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF: its metadata as plain values and its tensors (of the `gguf` package) by name."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return gguf_architecture(str(self.fields.get("general.architecture")), str(self.path))

    @property
    def parameter_count(self) -> int:
        return sum(int(tensor.n_elements) for tensor in self.tensors.values())

    def type_counts(self) -> dict[str, int]:
        """Number of tensors of each GGUF type."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
        return counts

    def blocks(self, name: str) -> Iterator[Array]:
        """A tensor dequantised to float32, in blocks of whole rows in checkpoint shape (rows first)."""
        import gguf

        tensor = self.tensors[name]
        rows_last = tuple(int(size) for size in tensor.shape)
        step = rows_in_a_block(rows_last[::-1])
        for row in range(0, len(tensor.data), step):
            yield gguf.quants.dequantize(tensor.data[row : row + step], tensor.tensor_type)


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF. Raises UserError if it is damaged, cut short, or one part of several."""
    try:
        import gguf
    except ImportError as error:
        raise MissingLibraryError("gguf", needed_for="Reading a GGUF", extra="gguf") from error
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}.", where=str(path)) from error
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise UserError(
            f"is no whole GGUF ({error}).", where=str(path), next_step="Fetch or write the file again."
        ) from error
    if int(fields.get("split.count", 1)) > 1:
        raise UserError(
            f"is one of {fields['split.count']} parts.", where=str(path), next_step="Join them with llama-gguf-split."
        )
    return GgufFile(path, fields, {tensor.name: tensor for tensor in reader.tensors})


def write_folder(path: Path, folder: Path, sha256: str) -> None:
    """Fill `folder` with the model of a GGUF: weights, config.json, tokenizer files and where it all came from."""
    source = open_gguf(path)
    architecture = source.architecture
    config = config_from_metadata(architecture, source.fields, set(source.tensors))
    if ROPE_FREQS in source.tensors:
        factors = next(source.blocks(ROPE_FREQS))
        config["rope_scaling"] = llama3_from_factors(factors, config["rope_theta"], str(path))
    config["vocab_size"] = int(source.tensors["token_embd.weight"].shape[1])
    dtype = "F32" if source.parameter_count <= FLOAT32_LIMIT else "BF16"
    config["torch_dtype"] = TORCH_NAMES[dtype]
    check_space(folder, source.parameter_count * CARRIERS[dtype][0], "the dequantised model")
    write_tokenizer(source.fields, folder, config["max_position_embeddings"], str(path))
    write_json(folder / "config.json", config)
    _write_weights(source, config, dtype, folder / SINGLE_FILE)
    write_json(
        folder / SOURCE_FILE,
        {
            "file": path.name,
            "sha256": sha256,
            "tensor_types": source.type_counts(),
            "name": source.fields.get("general.name"),
            "license": source.fields.get("general.license"),
            "ssd_lite": __version__,
        },
    )


def _write_weights(source: GgufFile, config: dict[str, Any], dtype: str, file: Path) -> None:
    names: dict[str, str] = {}
    for name in source.tensors:
        target = to_checkpoint_name(name, source.architecture)
        if target is not None:
            names[target] = name
        elif not COMPUTED.search(name):
            raise UserError(f"the tensor {name} has no place in {config['model_type']}.", where=str(source.path))
    shapes = {
        target: (dtype, tuple(int(size) for size in source.tensors[name].shape)[::-1])
        for target, name in sorted(names.items())
    }
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def blocks(target: str) -> Iterator[Array]:
        pieces = source.blocks(names[target])
        reorder = heads_to_reorder(source.architecture, target, heads, kv_heads)
        for piece in pieces if reorder is None else separate_rows(pieces, reorder):
            yield from_float32(piece, dtype, target)

    write_safetensors(file, shapes, (blocks(target) for target in shapes))
