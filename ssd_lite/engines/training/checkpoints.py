"""Which checkpoint folder is whole: a marker with the size of each file is written last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_lite.atomic import DONE_FILE, is_whole
from ssd_lite.errors import UserError

_TORCH_WRITES = ("PytorchStreamWriter", "file write failed", "unexpected pos")


def open_mark(folder: Path) -> None:
    """Call before a checkpoint folder is written again: it does not count until `atomic.seal`."""
    (folder / DONE_FILE).unlink(missing_ok=True)


def step_of(folder: Path) -> int:
    """Optimiser step of a folder `checkpoint-N`, -1 for another name."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; half-written ones are passed over."""
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) >= 0 and is_whole(path)]
    return max(found, key=step_of, default=None)


def keep_newest(folder: Path, count: int = 2) -> None:
    """Delete older checkpoints of this run, and half-written ones before them; call when the newest one is sealed.

    A folder loses its mark first, so that one half deleted does not count.
    """
    whole = sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0 and is_whole(path)), key=step_of)
    if len(whole) < count:
        return
    for path in folder.glob("checkpoint-*"):
        if 0 <= step_of(path) < step_of(whole[-count]):
            open_mark(path)
            shutil.rmtree(path)


@contextmanager
def written(folder: Path, what: str = "checkpoint") -> Iterator[None]:
    """Turn a disk that refuses a checkpoint, or the adapter, into a UserError; the checkpoints before it stay."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save, which writes the optimiser, has no error class of its own for a disk.
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_WRITES):
            raise
        raise UserError(
            f"this {what} cannot be written: {error}.",
            where=str(folder),
            next_step="Free space; the same command goes on from the last whole checkpoint.",
        ) from error


def check_writable(folder: Path) -> None:
    """Make the folder and try a write in it now, not at the first checkpoint. Raises UserError with the reason."""
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}.",
            where=str(folder),
            next_step="Free space or give write permission; training would lose its checkpoints.",
        ) from error
