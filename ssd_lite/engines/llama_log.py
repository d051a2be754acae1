"""llama.cpp's library with its log kept for error messages instead of printed."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ssd_lite.errors import MissingLibraryError

_lines: deque[str] = deque(maxlen=50)
_kept: list[list[str]] = []  # who wants every piece of the log just now
_WARNING = 3  # ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continuation


@cache
def llama_library() -> Any:
    """The module `llama_cpp.llama_cpp`, initialised once."""
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise MissingLibraryError("llama-cpp-python", needed_for="llama.cpp", extra="gguf") from error
    llama_cpp.llama_log_set(_keep_line(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _keep_line(llama_cpp: Any) -> Any:
    # The library calls through this object for the life of the process: if it were collected, the next line of log
    # would be a call into freed memory.
    def keep(level: int, text: bytes, user_data: Any) -> None:
        for pieces in _kept:
            pieces.append(text.decode("utf-8", errors="replace"))
        if level >= _WARNING:
            _lines.append(text.decode("utf-8", errors="replace").strip())

    return llama_cpp.llama_log_callback(keep)


def recent_log() -> str:
    """The last warnings and errors of llama.cpp, in one line."""
    return " | ".join([line for line in _lines if line][-3:]) or "no message"


@contextmanager
def whole_log() -> Iterator[list[str]]:
    """A list that takes all that llama.cpp logs meanwhile, in pieces of lines."""
    pieces: list[str] = []
    _kept.append(pieces)
    try:
        yield pieces
    finally:
        _kept.remove(pieces)
