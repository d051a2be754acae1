"""An importance matrix of a model: llama.cpp reads texts, and what enters each matrix product is squared and summed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.engines.gguf.ggml import ggml_library
from ssd_lite.engines.gguf.imatrix_file import Imatrix, read_imatrix, write_imatrix
from ssd_lite.engines.llama_context import LlamaModel
from ssd_lite.engines.llama_log import llama_library, recent_log
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.errors import Stopped, UserError
from ssd_lite.interrupt import stop_requested

LONGEST = 2048
"""Tokens of a text that are read at most: the cache of keys and values stays small."""
_BATCH = 512


class _Tensor(ctypes.Structure):
    """ggml's struct ggml_tensor up to its name (ggml.h); `_check_layout` holds it against the library."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def compute_imatrix(
    gguf: Path,
    texts: Sequence[Sequence[int]],
    out: Path,
    *,
    dataset: str,
    advance: Callable[[int], None] = lambda tokens: None,
    threads: int | None = None,
) -> Imatrix:
    """Let llama.cpp read `texts` (token ids, at most LONGEST are read of each) with `gguf`, and write `out`.

    Each text begins at position 0. Every token counts, and every weight of a layer; the embedding and the head are
    left out, as llama-imatrix does. Raises Stopped after a signal.
    """
    _check_layout()
    model = LlamaModel(gguf)
    longest = min(LONGEST, model.context_length)
    reader = _Reader(model, longest)
    tuner = ThreadTuner(reader.set_threads, threads)
    try:
        for text in texts:
            ids = text[:longest]
            for first in range(0, len(ids), _BATCH):
                if stop_requested():
                    raise Stopped("The importance matrix was cut short.")
                started, batch = time.monotonic(), ids[first : first + _BATCH]
                reader.read(batch, first)
                tuner.step(time.monotonic() - started, len(batch))
                advance(len(batch))
    finally:
        reader.close()
        model.close()
    write_imatrix(out, reader.sums, reader.counts, dataset=dataset, chunks=len(texts), size=longest)
    return read_imatrix(out)


class _Reader:
    """A context that hands every matrix product of a layer to `_collect`."""

    def __init__(self, model: LlamaModel, length: int) -> None:
        self._lib, self._ggml = llama_library(), ggml_library()
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self._broken: BaseException | None = None
        # llama.cpp calls through this object as long as the context lives.
        self._callback = self._lib.ggml_backend_sched_eval_callback(self._seen)
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = length, _BATCH, _BATCH
        parameters.cb_eval, parameters.no_perf = self._callback, True
        self._context = self._lib.llama_init_from_model(model.handle, parameters)
        if not self._context:
            raise UserError(f"llama.cpp cannot make a context of {length} tokens ({recent_log()}).")
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = self._lib.llama_batch_init(_BATCH, 0, 1)

    def set_threads(self, threads: int) -> None:
        self._lib.llama_set_n_threads(self._context, threads, threads)

    def read(self, ids: Sequence[int], position: int) -> None:
        """Decode tokens that begin at `position`; 0 begins a new text."""
        if position == 0:
            self._lib.llama_memory_seq_rm(self._memory, 0, -1, -1)
        batch = self._batch
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row] = token, position + row
            # Without logits llama.cpp would leave a token out of the last layer.
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, 0, True
        batch.n_tokens = len(ids)
        status = self._lib.llama_decode(self._context, batch)
        if self._broken is not None:
            raise self._broken
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} ({recent_log()})")

    def _seen(self, address: int, asked: bool, user_data: Any) -> bool:
        """Asked: is this tensor wanted? Else: it was computed. An exception must not pass through llama.cpp."""
        try:
            tensor = _Tensor.from_address(address)
            if tensor.op != _mul_mat():
                return not asked
            weight, inputs = _Tensor.from_address(tensor.src[0]), _Tensor.from_address(tensor.src[1])
            name = _plain_name(weight.name.decode())
            wanted = name.startswith("blk.") and inputs.type == 0 and inputs.ne[2] == inputs.ne[3] == 1
            if not asked and wanted:
                self._collect(name, inputs)
        except BaseException as error:
            self._broken = error
            return False
        return bool(wanted) if asked else True

    def _collect(self, name: str, inputs: _Tensor) -> None:
        width, rows = inputs.ne[0], inputs.ne[1]
        values = np.empty((rows, width), np.float32)
        self._ggml.ggml_backend_tensor_get(ctypes.byref(inputs), values.ctypes.data, 0, values.nbytes)
        if inputs.nb[1] != values.strides[0]:
            raise RuntimeError(f"what enters {name} does not lie in one piece")
        sums = np.square(values, dtype=np.float64).sum(axis=0)
        if not np.isfinite(sums).all():
            raise UserError(f"numbers that are not finite enter {name}: the model is broken.")
        self.sums[name] = self.sums.get(name, np.zeros(width)) + sums
        self.counts[name] = self.counts.get(name, 0) + rows

    def close(self) -> None:
        """Free the context."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)


def _plain_name(name: str) -> str:
    """`CUDA0#blk.0.attn_k.weight#0`, a copy on a card, is `blk.0.attn_k.weight`."""
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


@cache
def _mul_mat() -> int:
    """ggml's number of the matrix product."""
    library = ggml_library()
    return next(number for number in range(256) if library.ggml_op_name(number) == b"MUL_MAT")


class _InitParameters(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@cache
def _check_layout() -> None:
    """Raise UserError if this llama.cpp lays tensors out otherwise than `_Tensor` says: then nothing may be read."""
    library = ggml_library()
    for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_set_name", "ggml_mul_mat"):
        getattr(library, name).restype = ctypes.c_void_p
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_free.argtypes = [ctypes.c_void_p]
    library.ggml_new_tensor_2d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.ggml_set_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.ggml_mul_mat.argtypes = [ctypes.c_void_p] * 3
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.ggml_init.argtypes = [_InitParameters]
    context = library.ggml_init(_InitParameters(1 << 16, None, False))
    left = library.ggml_new_tensor_2d(context, 0, 3, 5)
    right = library.ggml_new_tensor_2d(context, 0, 3, 7)
    library.ggml_set_name(left, b"left")
    product = _Tensor.from_address(library.ggml_mul_mat(context, left, right))
    first, second = _Tensor.from_address(left), _Tensor.from_address(right)
    fits = (
        list(product.src)[:3] == [left, right, None]
        and list(product.ne) == [5, 7, 1, 1]
        and list(second.ne) == [3, 7, 1, 1]
        and list(second.nb) == [4, 12, 84, 84]
        and first.name == b"left"
        and bool(first.data)
        and library.ggml_op_name(product.op) == b"MUL_MAT"
    )
    library.ggml_free(context)
    if not fits:
        raise UserError(
            "this llama-cpp-python lays its tensors out otherwise than version 0.3.36 did.",
            where="--imatrix",
            next_step='Type: pip install "llama-cpp-python==0.3.36"; or give a matrix that llama-imatrix wrote.',
        )
