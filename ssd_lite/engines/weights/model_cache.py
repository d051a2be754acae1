"""The cache folder: converted models by the hash of what they came from, one writer each, and remembered hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_lite.atomic import sha256_of_file, write_json
from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path

_HASHES = "sha256.json"


def cache_folder() -> Path:
    """`$SSD_LITE_CACHE`, else `$XDG_CACHE_HOME/ssd-lite`, else `~/.cache/ssd-lite`; made if need be."""
    named = os.environ.get("SSD_LITE_CACHE")
    if named:
        folder = user_path(named, "SSD_LITE_CACHE")
    else:
        folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "SSD_LITE_CACHE") / "ssd-lite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder cannot be made: {error.strerror}.",
            where=str(folder),
            next_step="Set SSD_LITE_CACHE to a folder you may write.",
        ) from error
    return folder


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Wait until no other process makes `target`, then keep others out. The kernel ends it with the process.

    The lock lies in the cache, so that a folder of results holds results only.
    """
    locks = cache_folder() / "locks"
    name = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:24]
    try:
        locks.mkdir(exist_ok=True)
        descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}.", where=str(locks)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"the file system refuses a lock ({error.strerror}).",
                where=str(locks),
                next_step="Set SSD_LITE_CACHE to a local disk.",
            ) from error
        yield
    finally:
        os.close(descriptor)


def check_space(folder: Path, needed_bytes: int, what: str) -> int:
    """Free bytes of `folder`'s disk. UserError if they are fewer than `needed_bytes` and a twentieth for safety."""
    present = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    needed = needed_bytes + needed_bytes // 20
    free = shutil.disk_usage(present).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed} bytes ({needed / 2**30:.1f} GiB), the disk has {free} free.",
            where=str(folder.absolute()),
            next_step="Make room, or name a folder on another disk.",
        )
    return free


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. Read once: remembered by path, size, times and inode, so that a changed file is read anew.

    The Hub's cache names its large files by their hash, so a link into that cache is never read.
    """
    real = path.resolve()
    if path.is_symlink() and real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    status = real.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memory = cache_folder() / _HASHES
    known = _remembered(memory).get(str(real))
    if known is not None and known[:-1] == stamp:
        return str(known[-1])
    digest = sha256_of_file(real)
    try:
        write_json(memory, {**_remembered(memory), str(real): [*stamp, digest]})
    except UserError:
        # A cache that cannot be written costs time, not correctness.
        return digest
    return digest


def _remembered(memory: Path) -> dict[str, list[int | str]]:
    try:
        value = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
