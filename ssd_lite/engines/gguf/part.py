"""A GGUF while it is written: tensors in order, progress noted on the disk, a name of its own only once it is whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_lite import __version__
from ssd_lite.atomic import fsync_folder, write_json
from ssd_lite.engines.gguf.header import padded
from ssd_lite.errors import UserError


class GgufPart:
    """The file `.NAME.part-export` beside `out`, and its note of how many tensors are safe.

    `head` is the file's beginning, `sizes` the bytes of each tensor, `source` tells what the numbers are made from: a
    part of the same head and source goes on, another is begun anew. UserError where the disk refuses.
    """

    def __init__(self, out: Path, head: bytes, sizes: Sequence[int], source: str) -> None:
        self.out, self.part = out, out.with_name(f".{out.name}.part-export")
        self._note = out.with_name(f"{self.part.name}.json")
        self._head, self._sizes = head, sizes
        self._stamp = hashlib.sha256(head + f"{__version__}\n{source}".encode()).hexdigest()
        self._file: io.FileIO | None = None
        self.done, self._end, self.state = self._noted()

    def _noted(self) -> tuple[int, int, dict[str, Any]]:
        """Tensors and bytes that are safe, and the state saved with them."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["stamp"] == self._stamp and self.part.stat().st_size >= note["bytes"]:
                return int(note["tensors"]), int(note["bytes"]), dict(note["state"])
        except (OSError, ValueError, KeyError):
            pass  # no note, or a torn one: the part is begun anew
        return 0, 0, {}

    def open(self) -> None:
        """Go on behind what is safe, or begin with the head."""
        try:
            self._file = io.FileIO(self.part, "r+" if self._end else "w")
            self._file.truncate(self._end)
            self._file.seek(self._end)
            if not self._end:
                self._write(memoryview(self._head))
                self._end = self._file.tell()
        except OSError as error:
            raise self._refused(error) from error

    @property
    def missing_bytes(self) -> int:
        """What still has to be written."""
        return len(self._head) + sum(map(padded, self._sizes)) - self._end

    def write(self, block: np.ndarray[Any, Any]) -> None:
        """Append numbers of the tensor in hand."""
        try:
            self._write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._refused(error) from error

    def _write(self, data: memoryview) -> None:
        while data:  # an unbuffered file may take a part only
            data = data[self._opened.write(data) :]

    @property
    def _opened(self) -> io.FileIO:
        if self._file is None:
            raise ValueError(f"{self.part.name} is not open")
        return self._file

    def end_tensor(self) -> None:
        """Pad the tensor in hand. Raises ValueError if it has not its size."""
        size, place = self._sizes[self.done], self._opened.tell()
        if place - self._end != size:
            raise ValueError(f"{self.out.name}: tensor {self.done} has {place - self._end} bytes, not {size}")
        self.write(np.zeros(padded(size) - size, np.uint8))
        self._end, self.done = self._opened.tell(), self.done + 1

    def save(self, state: dict[str, Any]) -> None:
        """Make the finished tensors safe against a kill; `state` comes back as `state` with them."""
        try:
            os.fsync(self._opened.fileno())
            note = {"stamp": self._stamp, "tensors": self.done, "bytes": self._end, "state": state}
            write_json(self._note, note)
        except OSError as error:
            raise self._refused(error) from error

    def publish(self) -> None:
        """Give the whole file its name."""
        try:
            os.fsync(self._opened.fileno())
            self.close()
            os.replace(self.part, self.out)
            self._note.unlink(missing_ok=True)
            fsync_folder(self.out.parent)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Leave it as it is, to go on later."""
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Remove it: what it was to be made from cannot be written."""
        self.close()
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> UserError:
        return DiskError(
            f"cannot be written: {error.strerror}.",
            where=str(self.out),
            next_step="Make room or name another folder; the same command goes on where it stopped.",
        )


class DiskError(UserError):
    """The disk refuses to be written to; what was written before stays."""
