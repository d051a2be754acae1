"""Which checkpoint folder is whole: a marker with the size of each file is written last."""

from __future__ import annotations

import os
from pathlib import Path

from ssd_lite.atomic import DONE_FILE, is_whole
from ssd_lite.errors import UserError


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
