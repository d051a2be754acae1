"""Quantised GGUFs by llama.cpp's own quantiser, and llama.cpp's view of a written file's vocabulary."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_lite.atomic import fsync_folder
from ssd_lite.container import usable_cores
from ssd_lite.engines.gguf.imatrix_file import Imatrix
from ssd_lite.engines.gguf.types import quantiser_settings
from ssd_lite.engines.llama_log import llama_library, recent_log
from ssd_lite.engines.weights.model_cache import check_space
from ssd_lite.errors import UserError


def quantise(
    source: Path, out: Path, gguf_type: str, threads: int | None = None, imatrix: Imatrix | None = None
) -> None:
    """Quantise a 16- or 32-bit GGUF to `out` in llama.cpp, which appears whole or not at all and which it can open.

    Raises UserError with llama.cpp's own last words if it refuses.
    """
    library = llama_library()
    check_space(out.parent, source.stat().st_size, f"the {gguf_type} GGUF")
    settings, kept = quantiser_settings(gguf_type, imatrix)
    settings.nthread = threads or usable_cores()
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    status = library.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(settings))
    del kept
    if status != 0:
        part.unlink(missing_ok=True)
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

    def tokenise(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """Token ids of a text; `parse_special` finds control tokens in it, `add_special` adds bos as the file says."""
        data = text.encode()
        ids = (self._lib.llama_token * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        return list(ids[:count])

    def token(self, index: int) -> str:
        """A token as the file writes it; "" for -1, llama.cpp's word for none."""
        return "" if index < 0 else bytes(self._lib.llama_vocab_get_text(self._vocab, index)).decode("utf-8")

    def kind(self, index: int) -> str:
        """What a token is: "control", "added" (text that the model's author added), "unused" or "text"."""
        found, lib = self._lib.llama_vocab_get_attr(self._vocab, index), self._lib
        if found & lib.LLAMA_TOKEN_ATTR_CONTROL:
            return "control"
        if found & lib.LLAMA_TOKEN_ATTR_USER_DEFINED:
            return "added"
        return "unused" if found & lib.LLAMA_TOKEN_ATTR_UNUSED else "text"

    def text(self, ids: Sequence[int], *, show_special: bool) -> str:
        """The text of token ids; bytes that are no character show as U+FFFD."""
        tokens = (self._lib.llama_token * len(ids))(*ids)
        buffer = ctypes.create_string_buffer(64 + 16 * len(ids))
        while True:
            size = len(buffer)
            length = self._lib.llama_detokenize(self._vocab, tokens, len(ids), buffer, size, False, show_special)
            if length >= 0:
                return buffer.raw[:length].decode("utf-8", errors="replace")
            buffer = ctypes.create_string_buffer(-length)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self._lib.llama_vocab_n_tokens(self._vocab))

    @property
    def pad(self) -> int:
        """The id of the token that pads, -1 where there is none."""
        return int(self._lib.llama_vocab_pad(self._vocab))

    @property
    def bos(self) -> int:
        """The id of the token that begins a text, -1 where there is none."""
        return int(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """The id of the token that ends a text, -1 where there is none."""
        return int(self._lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """True where plain text gets bos in front."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    def is_end(self, token: int) -> bool:
        """True for tokens that end a reply."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def value(self, key: str) -> str | None:
        """A metadata value as llama.cpp prints it, or None."""
        size = 1 << 16
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < size:
                return None if length < 0 else buffer.value.decode()
            size = length + 1

    def close(self) -> None:
        """Free it."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None
