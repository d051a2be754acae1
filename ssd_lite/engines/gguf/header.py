"""The head of a GGUF, up to its first tensor: settings, vocabulary, decoding, and where each tensor lies."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_lite.engines.gguf.ggml import Format
from ssd_lite.engines.gguf.imatrix_file import Imatrix
from ssd_lite.engines.gguf.model import GgufModel
from ssd_lite.engines.gguf.settings import metadata
from ssd_lite.engines.gguf.vocabulary import Vocabulary
from ssd_lite.errors import MissingLibraryError
from ssd_lite.recipe_section import Decoding

ALIGNMENT = 32
_QUANTISATION_VERSION = 2
TOKEN_ID_KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "pad": "padding", "unk": "unknown"}


@dataclass(frozen=True)
class Layout:
    """What a file is: llama.cpp's number of its type, each tensor's format in the model's order, and the imatrix."""

    file_type: int
    formats: Sequence[Format]
    quantised: bool = False
    imatrix: Imatrix | None = None

    def sizes(self, model: GgufModel) -> list[int]:
        """Bytes of each tensor, without padding."""
        return [
            tensor.count // tensor.shape[-1] * form.row_bytes(tensor.shape[-1])
            for tensor, form in zip(model.tensors, self.formats, strict=True)
        ]


def padded(size: int) -> int:
    """`size` with the padding that follows a tensor."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def header_bytes(model: GgufModel, layout: Layout) -> bytes:
    """The head, padded. Keys stand in the order in which llama.cpp's converter and its quantiser write them."""
    writer = gguf_writer(model.architecture.name)
    writer.add_type("model")
    writer.add_name(model.name)
    if not layout.quantised:
        writer.add_file_type(layout.file_type)
        writer.add_quantization_version(_QUANTISATION_VERSION)
    _add_settings(writer, model)
    _add_vocabulary(writer, model.vocabulary)
    if model.decoding is not None:
        _add_decoding(writer, model.decoding)
    if layout.quantised:
        writer.add_quantization_version(_QUANTISATION_VERSION)
        writer.add_file_type(layout.file_type)
    if layout.imatrix is not None:
        _add_imatrix(writer, layout.imatrix)
    for tensor, form, size in zip(model.tensors, layout.formats, layout.sizes(model), strict=True):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=form.id)
    return _written(writer)


def gguf_writer(architecture: str) -> Any:
    """gguf's writer, as yet without a file. Raises MissingLibraryError without the library."""
    try:
        import gguf
    except ImportError as error:
        raise MissingLibraryError("gguf", needed_for="Writing a GGUF", extra="gguf") from error
    return gguf.GGUFWriter(None, architecture)


def _written(writer: Any) -> bytes:
    from gguf.gguf_writer import WriterState

    memory = io.BytesIO()
    writer.fout, writer.state = [memory], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return memory.getvalue().ljust(padded(memory.tell()), b"\0")


def _add_settings(writer: Any, model: GgufModel) -> None:
    for key, value in metadata(model.architecture, model.config).items():
        full = f"{model.architecture.name}.{key}"
        match value:
            case str():
                writer.add_string(full, value)
            case float():
                writer.add_float32(full, value)
            case int():
                writer.add_uint32(full, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    for key, index in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{TOKEN_ID_KEYS[key]}_token_id", index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _add_decoding(writer: Any, decoding: Decoding) -> None:
    writer.add_sampling_sequence(decoding.samplers())  # llama.cpp reads all of these as its defaults, since PR 17120
    writer.add_sampling_temp(decoding.temperature)
    writer.add_sampling_top_k(decoding.top_k)
    writer.add_sampling_top_p(decoding.top_p)
    writer.add_sampling_min_p(decoding.min_p)
    writer.add_sampling_penalty_repeat(1.0)


def _add_imatrix(writer: Any, imatrix: Imatrix) -> None:
    """What llama-quantize notes of the matrix a file was made with."""
    writer.add_string("quantize.imatrix.file", imatrix.file)
    writer.add_string("quantize.imatrix.dataset", imatrix.dataset)
    writer.add_uint32("quantize.imatrix.entries_count", len(imatrix.columns))
    writer.add_uint32("quantize.imatrix.chunks_count", imatrix.chunks)
