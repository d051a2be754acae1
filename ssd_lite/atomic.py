"""Files and folders that appear whole or not at all: write aside, fsync, one rename.

What the disk refuses becomes a UserError that names the file and the reason.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError

DONE_FILE = "DONE.json"
# What a disk says of itself, whoever writes: full, over a quota, a file too large, read-only, broken.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on the disk and run the same command again.")


def unwritable(path: Path, error: OSError) -> UserError:
    """The error to raise where `path` cannot be written."""
    return UserError(
        f"cannot be written: {error.strerror or error}.",
        where=str(path.absolute()),
        next_step=_ADVICE.get(error.errno or 0, ""),
    )


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Raise UserError where the disk fails whoever writes in the body; names the file, or `place` if nobody knows it.

    Other errors stay what they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise unwritable(Path(error.filename or place), error) from error


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one rename, durably, or raise UserError; half a file is never left."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # half a file only takes room that is needed
            part.unlink()
        raise unwritable(path, error) from error


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Give a file to write; on a clean exit it replaces `path` in one rename, durably. UserError for a full disk."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    with disk_errors(path):
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON in one rename. Raises UserError where it cannot."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; on a clean exit it becomes `target` by one rename, with DONE.json inside.

    On an exception or a kill the half-filled folder keeps its `.part-` name and `target` does not appear. Raises
    UserError where it cannot be made or the disk is full.
    """
    part = target.with_name(f".{target.name}.part-{os.getpid()}-{time.time_ns()}")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise unwritable(target, error) from error
    with disk_errors(target):
        yield part
        seal(part)
        os.rename(part, target)
        fsync_folder(target.parent)


def seal(folder: Path) -> None:
    """Bring every file of `folder` to disk, then write DONE.json with their sizes, which makes the folder count."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            fsync_folder(path)
    write_json(folder / DONE_FILE, {"sizes": sizes})


def is_whole(folder: Path) -> bool:
    """True if `folder` was published by `new_folder` and every file still has its size."""
    try:
        sizes = json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))["sizes"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def leftovers(parent: Path) -> list[Path]:
    """Half-written files and folders of dead runs directly in `parent`. Nothing here deletes them."""
    return sorted(parent.glob(".*.part-*"))
