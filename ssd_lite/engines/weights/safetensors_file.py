"""Safetensors files in pieces: checked header, tensors read and written block by block, no memory map, no torch."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_lite.engines.weights.number_formats import CARRIERS, Array
from ssd_lite.errors import UserError

# The format's own limit; a longer header is an attack or damage.
_MAX_HEADER_BYTES = 100_000_000
# Numbers in one block: 32 MiB in float32, small beside any model and large beside a call.
BLOCK_NUMBERS = 8 * 1024 * 1024


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file: its number format, shape and first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * CARRIERS[self.dtype][0]


def rows_in_a_block(shape: tuple[int, ...]) -> int:
    """Rows (first dimension) that fill one block; at least one."""
    return max(1, BLOCK_NUMBERS // max(1, math.prod(shape[1:])))


class SafetensorsFile:
    """The header of one file, checked against its size. Raises UserError for a damaged or truncated file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                self._read_header(file.read(8), file.read(min(size, _MAX_HEADER_BYTES)), size)
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}.", where=str(path)) from error

    def _read_header(self, start: bytes, following: bytes, size: int) -> None:
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= _MAX_HEADER_BYTES or 8 + length > size:
            raise self._damaged("its header is cut short or no safetensors header")
        try:
            header = json.loads(following[:length])
            self.metadata = dict(header.pop("__metadata__", {}))
            entries = [
                (name, e["dtype"], tuple(e["shape"]), e["data_offsets"][0], e["data_offsets"][1])
                for name, e in header.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise self._damaged("its header is no safetensors header") from error
        end = 8 + length + max((entry[4] for entry in entries), default=0)
        if end != size:
            raise self._damaged(f"its header wants {end} bytes, the file has {size}")
        for name, dtype, shape, first, last in entries:
            if dtype not in CARRIERS:
                raise UserError(
                    f"the tensor {name} has the number format {dtype}; wanted are {', '.join(CARRIERS)}.",
                    where=str(self.path),
                    next_step="Name the model in 16 or 32 bits, not a quantised one.",
                )
            info = TensorInfo(dtype, shape, 8 + length + first)
            if info.nbytes != last - first:
                raise self._damaged(f"the tensor {name} has {last - first} bytes, its shape wants {info.nbytes}")
            self.tensors[name] = info

    def _damaged(self, what: str) -> UserError:
        return UserError(f"is damaged: {what}.", where=str(self.path), next_step="Fetch or write the file again.")

    def blocks(self, name: str) -> Iterator[Array]:
        """The tensor in blocks of whole rows; bfloat16 as uint16 bits. A scalar comes as one block of its shape."""
        info = self.tensors[name]
        carrier = CARRIERS[info.dtype][1]
        with open(self.path, "rb", buffering=0) as file:
            file.seek(info.start)
            if not info.shape:
                yield np.fromfile(file, carrier, 1).reshape(())
                return
            step, width = rows_in_a_block(info.shape), math.prod(info.shape[1:])
            for row in range(0, info.shape[0], step):
                rows = min(step, info.shape[0] - row)
                yield np.fromfile(file, carrier, rows * width).reshape((rows, *info.shape[1:]))

    def array(self, name: str) -> Array:
        """The whole tensor; bfloat16 as uint16 bits."""
        parts = list(self.blocks(name))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], blocks: Iterable[Iterable[Array]]
) -> None:
    """Write a file whose tensors are (dtype, shape) by name; `blocks` gives each tensor's blocks in the same order.

    The data is flushed to the disk. Raises ValueError if the blocks of a tensor are more or fewer bytes than its shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * CARRIERS[dtype][0]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (dtype, shape)), pieces in zip(tensors.items(), blocks, strict=True):
            begin = file.tell()
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype=CARRIERS[dtype][1]).data)
            if file.tell() - begin != math.prod(shape) * CARRIERS[dtype][0]:
                raise ValueError(f"{name}: {file.tell() - begin} bytes written, not those of {dtype} {shape}")
        file.flush()
        os.fsync(file.fileno())
