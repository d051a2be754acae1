"""Append-only bytes beside a journal: a record names its span, so what a kill leaves behind belongs to nobody."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ssd_lite.errors import UserError
from ssd_lite.records import Span


class SpanFile:
    """Bytes on disk, each piece named by a Span that its owner keeps in a journal.

    The order of writing makes it safe: the piece is on disk before the record that names it. Opening for writing cuts
    what no record names.
    """

    def __init__(self, path: Path, spans: Iterable[Span]) -> None:
        self.path = path
        self._end = max((span.offset + span.length for span in spans), default=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}.", where=str(path)) from error
        size = os.fstat(self._file.fileno()).st_size
        if size < self._end:
            self._file.close()
            raise UserError(
                f"is cut: {size} bytes, and its samples name {self._end}.",
                where=str(path),
                next_step="Put the whole file back, or start a new run with --out.",
            )
        self._file.truncate(self._end)

    def append(self, data: bytes) -> Span:
        """Write a piece durably and say where it stands."""
        try:
            rest = data
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # what nobody names is cut when the file is opened again
                self._file.truncate(self._end)
            raise UserError(
                f"cannot be written: {error.strerror}; what stood there is kept.",
                where=str(self.path),
                next_step="Make room on the disk and run the same command again.",
            ) from error
        span = Span(self._end, len(data), zlib.crc32(data))
        self._end += len(data)
        return span

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SpanFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_span(path: Path, span: Span) -> bytes:
    """The piece of a span. Raises UserError where the file is missing, cut or damaged."""
    try:
        with path.open("rb") as file:
            file.seek(span.offset)
            data = file.read(span.length)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=str(path)) from error
    if len(data) != span.length or zlib.crc32(data) != span.crc:
        raise UserError(
            f"is damaged at byte {span.offset}.", where=str(path), next_step="Sample again in a new folder with --out."
        )
    return data
