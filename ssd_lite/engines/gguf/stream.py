"""One pass over a model's tensors, several GGUFs out: a block of rows in memory at a time, quantised by ggml."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssd_lite.engines.gguf.ggml import Format, quantise_rows
from ssd_lite.engines.gguf.header import Layout
from ssd_lite.engines.gguf.model import PLAIN_TYPES, GgufModel, GgufTensor
from ssd_lite.engines.gguf.part import GgufPart
from ssd_lite.engines.weights.number_formats import CARRIERS, Array, convert, to_float32
from ssd_lite.errors import Stopped
from ssd_lite.interrupt import stop_requested

SAVE_EVERY_S = 15.0
"""A kill costs at most so much work; saving waits for the disk."""
_PLAIN_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


@dataclass
class Output:
    """A file that is being written, in which layout, and the seconds its own work took."""

    part: GgufPart
    layout: Layout
    seconds: float = 0.0


class Counted(Protocol):
    """Weights that count something while they go by: what a resumed pass must take over to end with the whole count."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def write_tensors(
    model: GgufModel,
    outputs: Sequence[Output],
    pool: Executor,
    advance: Callable[[int], None],
    counted: Counted | None = None,
) -> None:
    """Fill the parts of `outputs`, each from the tensor where it stopped; `advance` is told the numbers gone by.

    Raises UserError for numbers that cannot be written, DiskError for a disk that refuses, and Stopped after a signal.
    """
    first = min(outputs, key=lambda output: output.part.done)
    if counted is not None and first.part.state:
        counted.restore(first.part.state)
    state, saved = first.part.state, time.monotonic()
    for index in range(first.part.done, len(model.tensors)):
        waiting = [output for output in outputs if output.part.done == index]
        if not _write_tensor(model, model.tensors[index], index, waiting, pool, advance):
            _save(outputs, index, state)
            raise Stopped("The export stopped.")
        state = counted.state() if counted else {}
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(outputs, index + 1, state)
            saved = time.monotonic()


def _save(outputs: Sequence[Output], done: int, state: dict[str, Any]) -> None:
    """Save the parts that have `done` tensors. One that was further before keeps its note: `state` counts less."""
    for output in outputs:
        if output.part.done == done:
            output.part.save(state)


def _write_tensor(
    model: GgufModel,
    tensor: GgufTensor,
    index: int,
    outputs: Sequence[Output],
    pool: Executor,
    advance: Callable[[int], None],
) -> bool:
    """False where a signal came before its end: the next process begins this tensor anew."""
    stored, exact = model.stored(tensor), PLAIN_TYPES[model.exact][0]
    for block in model.blocks(tensor):
        if stop_requested():
            return False
        rows: Array | None = None
        for output in outputs:
            started = time.monotonic()
            wanted = output.layout.formats[index]
            if output.layout.quantised and not tensor.is_vector:
                if rows is None:
                    # Quantised from what an exact file would hold, so that a stream and two steps give equal bytes.
                    rows = to_float32(convert(block, stored, exact, tensor.name), exact)
                output.part.write(_quantised(tensor, rows, wanted, output.layout, pool))
            else:
                dtype = _PLAIN_NAMES[wanted.name]
                output.part.write(convert(block, stored, dtype, tensor.name).astype(CARRIERS[dtype][1], copy=False))
            output.seconds += time.monotonic() - started
        advance(block.size)
    for output in outputs:
        output.part.end_tensor()
    return True


def _quantised(tensor: GgufTensor, rows: Array, wanted: Format, layout: Layout, pool: Executor) -> Array:
    column = None if layout.imatrix is None else layout.imatrix.columns.get(tensor.name)
    if column is not None and len(column) != rows.shape[-1]:
        column = None
    return quantise_rows(np.asarray(rows), wanted, column, pool, tensor.name)
