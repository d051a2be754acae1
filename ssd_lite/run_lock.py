"""One writer per run folder: a kernel lock that goes with its process, and children that die with their parent."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_lite.atomic import disk_errors
from ssd_lite.errors import UserError

LOCK_FILE = ".lock"
_INHERITED = "SSD_LITE_LOCK_FD"
_PR_SET_PDEATHSIG = 1


@contextmanager
def run_lock(folder: Path) -> Iterator[int]:
    """Hold the lock of a run folder; yields its file descriptor. Raises UserError if another process holds it.

    A stage started by `ssd-lite run` works under the lock of that run, which it inherits.
    """
    inherited = _inherited_lock(folder)
    if inherited is not None:
        yield inherited
        return
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        # Most commands on a run have no --out; those that do (run, compare) go on in a copy as well.
        is_run = (folder / "recipe.yaml").is_file()
        advice = "Make it writable, or copy it and name the copy." if is_run else "Name a folder of yours with --out."
        raise UserError(f"cannot be written: {error.strerror}.", where=str(folder), next_step=advice) from error
    try:
        _take(descriptor, folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "an unknown process"
        raise UserError(f"is in use by {holder}.", where=str(folder), next_step="Wait for it, or end it.") from error
    except OSError as error:
        raise UserError(
            f"the file system refuses a lock ({error.strerror}).", where=str(folder), next_step="Use a local disk."
        ) from error
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    with disk_errors(folder / LOCK_FILE):
        holder_now = {"pid": os.getpid(), "host": socket.gethostname(), "since": started}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder_now).encode(), 0)


def _inherited_lock(folder: Path) -> int | None:
    text = os.environ.get(_INHERITED, "")
    if not text.isdigit():
        return None
    try:
        held, wanted = os.fstat(int(text)), os.stat(folder / LOCK_FILE)
    except OSError:
        return None
    return int(text) if (held.st_dev, held.st_ino) == (wanted.st_dev, wanted.st_ino) else None


def environment_with_lock(descriptor: int) -> dict[str, str]:
    """The environment for a stage that shall work under this lock; pass the descriptor on with `pass_fds`."""
    return {**os.environ, _INHERITED: str(descriptor)}


def die_with_parent() -> None:
    """Ask the kernel to stop this process (SIGTERM) when its parent dies, so that no orphan keeps the lock or the GPU.

    Linux only; elsewhere it does nothing. Call it first thing in the child.
    """
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
