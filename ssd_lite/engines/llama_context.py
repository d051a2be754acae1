"""A llama.cpp model and context through llama-cpp-python's low-level API: load, decode, logits, sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.llama_log import llama_library, recent_log
from ssd_lite.errors import UserError

ALL_LAYERS = 10_000
KV_BYTES_PER_ELEMENT = 2  # the cache is F16


class LlamaModel:
    """Weights and vocabulary of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._lib = llama_library()
        parameters = self._lib.llama_model_default_params()
        parameters.n_gpu_layers = ALL_LAYERS if self._lib.llama_supports_gpu_offload() else 0
        self.handle: Any = self._lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.handle:
            raise UserError(f"llama.cpp cannot load it ({recent_log()}).", where=str(path))
        self.vocabulary: Any = self._lib.llama_model_get_vocab(self.handle)
        self.vocabulary_size: int = self._lib.llama_vocab_n_tokens(self.vocabulary)
        self.context_length: int = self._lib.llama_model_n_ctx_train(self.handle)

    def kv_bytes_per_token(self) -> int:
        """Bytes of key and value cache one token takes."""
        architecture = self.metadata("general.architecture")
        head_width = self.metadata(f"{architecture}.attention.key_length")
        if head_width is None:
            head_width = self._lib.llama_model_n_embd(self.handle) // self._lib.llama_model_n_head(self.handle)
        width: int = int(head_width) * self._lib.llama_model_n_head_kv(self.handle)
        layers: int = self._lib.llama_model_n_layer(self.handle)
        return 2 * KV_BYTES_PER_ELEMENT * layers * width

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text; None if it is not there."""
        buffer = ctypes.create_string_buffer(4096)
        length = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace") if length >= 0 else None

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            self._lib.llama_model_free(self.handle)
            self.handle = None


class LlamaContext:
    """A cache of `sequences` sequences of up to `length` tokens each, and the decoding of batches into it.

    Sequences have streams of their own (not one unified cache): a step then attends only to the tokens of its own
    sequence. At depth 300 with 16 sequences that was 1.26 times as fast; a prompt shared between sequences is
    computed once and copied.
    """

    def __init__(self, model: LlamaModel, *, sequences: int, length: int, batch: int = 512) -> None:
        self._lib, self._model, self._capacity = llama_library(), model, max(batch, sequences)
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = sequences * _padded(length), sequences
        parameters.n_batch = parameters.n_ubatch = self._capacity
        parameters.kv_unified, parameters.no_perf = False, True
        self.handle: Any = self._lib.llama_init_from_model(model.handle, parameters)
        if not self.handle:
            raise UserError(
                f"llama.cpp cannot make a context of {sequences} x {length} tokens ({recent_log()}).",
                next_step="Lower batch_size or max_new_tokens.",
            )
        self._memory = self._lib.llama_get_memory(self.handle)
        self._batch = self._lib.llama_batch_init(self._capacity, 0, 1)

    def set_threads(self, threads: int) -> None:
        """CPU threads of the next decodes."""
        self._lib.llama_set_n_threads(self.handle, threads, threads)

    def prefill(self, sequence: int, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Put a prompt into an empty sequence; the logits [vocabulary] after its last token (a copy)."""
        for offset in range(0, len(ids), self._capacity):
            part = ids[offset : offset + self._capacity]
            last = offset + len(part) == len(ids)
            for row, token in enumerate(part):
                self._put(row, token, offset + row, sequence, wants_logits=last and row == len(part) - 1)
            self._decode(len(part))
        logits: npt.NDArray[np.float32] = self._logits(1)[0].copy()
        return logits

    def step(self, entries: Sequence[tuple[int, int, int]]) -> npt.NDArray[np.float32]:
        """Decode one token in each `(sequence, token, position)`.

        Logits [entries, vocabulary], valid until the next call.
        """
        for row, (sequence, token, position) in enumerate(entries):
            self._put(row, token, position, sequence, wants_logits=True)
        self._decode(len(entries))
        return self._logits(len(entries))

    def read(self, sequence: int, ids: Sequence[int], position: int, wanted: Set[int]) -> npt.NDArray[np.float32]:
        """Decode a block of given tokens, at most `batch`, that goes on at `position`.

        Logits [len(wanted), vocabulary] after the tokens at the `wanted` positions, in order, valid until the next
        call.
        """
        for row, token in enumerate(ids):
            self._put(row, token, position + row, sequence, wants_logits=position + row in wanted)
        self._decode(len(ids))
        return self._logits(len(wanted)) if wanted else np.empty((0, self._model.vocabulary_size), dtype=np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`."""
        self.clear(target)
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._lib.llama_memory_seq_rm(self._memory, target, length, -1)

    def clear(self, sequence: int) -> None:
        """Empty a sequence."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _put(self, row: int, token: int, position: int, sequence: int, *, wants_logits: bool) -> None:
        batch = self._batch
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, wants_logits

    def _decode(self, rows: int) -> None:
        self._batch.n_tokens = rows
        status = self._lib.llama_decode(self.handle, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} ({recent_log()})")

    def _logits(self, rows: int) -> npt.NDArray[np.float32]:
        pointer = self._lib.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), shape=(rows, self._model.vocabulary_size)
        )

    def close(self) -> None:
        """Free the cache."""
        if self.handle:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self.handle)
            self.handle = None


def _padded(length: int) -> int:
    return -(-length // 256) * 256
