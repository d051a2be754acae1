"""Append-only JSONL: one record a line with its checksum; a torn last line is cut when the file is opened again."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ssd_lite.errors import UserError

Record = Mapping[str, Any]
_TAIL = b',"crc":"00000000"}'


def encode_line(record: Record) -> bytes:
    """One line of a journal: the record, then `crc`, the CRC-32 of everything before it."""
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()[:-1]
    separator = b"," if len(body) > 1 else b""
    return body + separator + b'"crc":"%08x"}\n' % zlib.crc32(body)


def decode_line(line: bytes) -> dict[str, Any]:
    """The record of one line. Raises ValueError if the line is torn or damaged."""
    line = line.rstrip(b"\r\n")
    head = line[: -len(_TAIL)]
    value = json.loads(line)
    if not isinstance(value, dict) or value.pop("crc", None) != f"{zlib.crc32(head):08x}":
        raise ValueError("the checksum does not fit")
    return value


class Journal:
    """A file of records with unique keys. `append` returns after the records are on disk (one write, one fsync).

    Opening reads what is there. A last line without its end of line is what a kill leaves: it is cut, and `cut_bytes`
    says how much. Any other bad line, or a key that stands twice, is damage and raises UserError.
    """

    def __init__(self, path: Path, key: Callable[[Record], Hashable]) -> None:
        self.path, self._key = path, key
        self.cut_bytes = 0
        self.records: list[dict[str, Any]] = []
        self._keys: set[Hashable] = set()
        good_end = self._read() if path.exists() else 0
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}.", where=str(path)) from error
        if self.cut_bytes:
            self._file.truncate(good_end)

    def _read(self) -> int:
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}.", where=str(self.path)) from error
        end = data.rfind(b"\n") + 1
        self.cut_bytes = len(data) - end
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                record = decode_line(line)
            except ValueError as error:
                raise UserError(
                    f"this line is damaged ({error}).",
                    where=f"{self.path}:{number}",
                    next_step="Move the file away to make its records again, or delete that one line.",
                ) from error
            key = self._key(record)
            if key in self._keys:
                raise UserError(f"a second record for {key!r}.", where=f"{self.path}:{number}")
            self._keys.add(key)
            self.records.append(record)
        return end

    def __contains__(self, key: Hashable) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self.records)

    def append(self, records: Iterable[Record]) -> None:
        """Write records durably. Raises KeyError for a key that is already there."""
        new: dict[Hashable, dict[str, Any]] = {}
        for record in records:
            key = self._key(record)
            if key in self._keys or key in new:
                raise KeyError(f"{self.path.name} has a record for {key!r} already")
            new[key] = dict(record)
        self._write(b"".join(map(encode_line, new.values())))
        self._keys.update(new)
        self.records.extend(new.values())

    def _write(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # a torn line is cut when the file is opened again
                self._file.truncate(end)
            raise UserError(
                f"cannot be written: {error.strerror}; what stood there is kept.",
                where=str(self.path),
                next_step="Make room on the disk and run the same command again.",
            ) from error

    def close(self) -> None:
        """Close the file. The records stay readable."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a finished journal. Raises UserError for a missing file or a bad line, the last included."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=str(path)) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(decode_line(line))
        except ValueError as error:
            raise UserError(f"this line is damaged ({error}).", where=f"{path}:{number}") from error
    return records
