"""ggml's own functions, out of llama-cpp-python's library: its number formats, and rows quantised as llama.cpp does."""

from __future__ import annotations

import ctypes
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.engines.llama_log import llama_library
from ssd_lite.errors import UserError

Rows = NDArray[np.float32]
# ggml's own numbers of the formats that no library is needed for.
PLAIN_IDS = {"F32": 0, "F16": 1, "BF16": 30}
# Weights one thread quantises at a time: some milliseconds, long beside a call and short beside a block.
_JOB_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class Format:
    """A number format of ggml: its number in a GGUF, its name, and bytes of a block of so many weights."""

    id: int
    name: str
    block_weights: int
    block_bytes: int

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights."""
        return width // self.block_weights * self.block_bytes


PLAIN_FORMATS = {
    name: Format(PLAIN_IDS[name], name.lower(), 1, size) for name, size in (("F32", 4), ("F16", 2), ("BF16", 2))
}


@cache
def ggml_library() -> Any:
    """The shared library. llama.cpp's finds ggml's functions too, since it is linked with them."""
    library = llama_library()._lib
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    )
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return library


@cache
def formats() -> dict[str, Format]:
    """Every number format of the installed ggml, by the name that llama.cpp prints (`f32`, `q4_K` …)."""
    library, found = ggml_library(), {}
    for number in range(llama_library().GGML_TYPE_COUNT):
        block = int(library.ggml_blck_size(number))
        if block > 0:  # numbers of removed formats stay empty
            name = library.ggml_type_name(number).decode()
            found[name] = Format(number, name, block, int(library.ggml_type_size(number)))
    return found


def quantise_rows(rows: Rows, wanted: Format, importance: Rows | None, pool: Executor, where: str) -> NDArray[np.uint8]:
    """Rows [n, width] in the format `wanted`, bytes [n, row bytes], by ggml's own code.

    Each row stands alone, so that cutting a tensor into blocks changes nothing. `importance` [width] is how much an
    error of each column weighs. Raises UserError for numbers that are not finite.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    out = np.empty((len(rows), wanted.row_bytes(rows.shape[1])), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    step = max(1, _JOB_WEIGHTS // rows.shape[1])
    library = ggml_library()

    def job(first: int) -> bool:
        part, target = rows[first : first + step], out[first : first + step]
        pointer = None if weights is None else weights.ctypes.data
        library.ggml_quantize_chunk(
            wanted.id, part.ctypes.data, target.ctypes.data, 0, len(part), part.shape[1], pointer
        )
        return bool(library.ggml_validate_row_data(wanted.id, target.ctypes.data, target.nbytes))

    # ggml's own check sees scales alone; it lets a single number that is not finite pass.
    if not (np.isfinite(rows).all() and all(list(pool.map(job, range(0, len(rows), step))))):
        raise UserError(
            f"{where} has weights that are not finite in {wanted.name}.", next_step="Choose another type, bf16 for one."
        )
    return out
