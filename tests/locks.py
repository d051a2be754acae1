"""After a kill: wait until no process of a run or comparison is left that holds one of its locks."""

from __future__ import annotations

import time
from pathlib import Path

from ssd_lite.run_lock import LOCK_FILE
from ssd_lite.stages.status import holder


def wait_until_free(folder: Path, limit_s: float = 90) -> None:
    """An orphaned stage is told to stop and first finishes the step in hand, which a busy machine stretches."""
    deadline = time.monotonic() + limit_s
    while any(holder(lock.parent) for lock in folder.rglob(LOCK_FILE)):
        assert time.monotonic() < deadline, "an orphaned stage did not end"
        time.sleep(0.05)
