"""Files and folders that appear whole or not at all: write aside, fsync, one rename."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DONE_FILE = "DONE.json"


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one rename, durably."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    fsync_folder(path.parent)


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Give a file to write; on a clean exit it replaces `path` in one rename, durably."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    yield part
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON in one rename."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; on a clean exit it becomes `target` by one rename, with DONE.json inside.

    On an exception or a kill the half-filled folder keeps its `.part-` name and `target` does not appear.
    """
    part = target.with_name(f".{target.name}.part-{os.getpid()}-{time.time_ns()}")
    part.mkdir(parents=True)
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
