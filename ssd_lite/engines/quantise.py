"""Quantised GGUFs by llama.cpp's own quantiser, and llama.cpp's view of a written file's vocabulary."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from ssd_lite.atomic import fsync_folder
from ssd_lite.engines.llama_log import llama_library, recent_log
from ssd_lite.engines.model_cache import check_space
from ssd_lite.errors import UserError

# Our type → llama.cpp's file type, and the bits a weight takes at most (for the room on the disk).
FILE_TYPES = {
    "f32": (0, 32.0),
    "f16": (1, 16.0),
    "bf16": (32, 16.0),
    "q8_0": (7, 8.5),
    "q6_k": (18, 6.6),
    "q5_k_m": (17, 6.0),
    "q5_k_s": (16, 5.9),
    "q4_k_m": (15, 5.3),
    "q4_k_s": (14, 5.1),
    "q4_0": (2, 5.0),
    "q3_k_m": (12, 4.5),
    "q2_k": (10, 4.0),
}


def quantise(source: Path, out: Path, gguf_type: str, threads: int | None = None) -> None:
    """Quantise a 16- or 32-bit GGUF to `out`, which appears whole or not at all and which llama.cpp can open.

    Raises UserError with llama.cpp's own last words if it refuses.
    """
    library = llama_library()
    check_space(out.parent, source.stat().st_size, f"the {gguf_type} GGUF")
    parameters = library.llama_model_quantize_default_params()
    parameters.nthread = threads or os.cpu_count() or 1
    parameters.ftype = FILE_TYPES[gguf_type][0]
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    status = library.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(parameters))
    if status != 0:
        raise UserError(
            f"llama.cpp cannot quantise it to {gguf_type} ({recent_log()}).",
            where=str(source),
            next_step="Choose another type, f16 for instance.",
        )
    Vocabulary(part).close()
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, out)
    fsync_folder(out.parent)


class Vocabulary:
    """llama.cpp's view of a GGUF's metadata and vocabulary, loaded without the weights. UserError if it cannot."""

    def __init__(self, path: Path) -> None:
        self._lib = llama_library()
        parameters = self._lib.llama_model_default_params()
        parameters.vocab_only = True
        self._model: Any = self._lib.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise UserError(f"llama.cpp cannot open it ({recent_log()}).", where=str(path))
        self._vocab = self._lib.llama_model_get_vocab(self._model)

    def tokenise(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of a text, no bos added; `parse_special` finds control tokens in it."""
        data = text.encode()
        ids = (self._lib.llama_token * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, parse_special)
        return list(ids[:count])

    def is_end(self, token: int) -> bool:
        """True for tokens that end a reply."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def value(self, key: str) -> str | None:
        """A metadata value as llama.cpp prints it, or None."""
        buffer = ctypes.create_string_buffer(1 << 16)
        length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode()

    def close(self) -> None:
        """Free it."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None
