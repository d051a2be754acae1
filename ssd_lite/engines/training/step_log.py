"""One record a training step in metrics.jsonl; a step replayed after a resume is compared, not repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_lite.journal import Journal

REPLAY_TOLERANCE = 1e-3


class StepLog:
    """The journal of training steps, keyed by step. `say` receives lines for people (run.log).

    Of several training processes one writes; the others keep their records in memory only.
    """

    def __init__(self, path: Path, say: Callable[[str], None], *, writes: bool = True) -> None:
        self._say = say
        self._memory: list[dict[str, Any]] = []
        self._journal = Journal(path, key=lambda record: record["step"]) if writes else None
        if self._journal is not None and self._journal.cut_bytes:
            say(f"metrics: cut {self._journal.cut_bytes} bytes of a half-written record")

    def record(self, entry: dict[str, Any]) -> None:
        """Write one step, or compare it with what was written before a restart."""
        if self._journal is None:
            self._memory.append(entry)
            return
        if entry["step"] not in self._journal:
            self._journal.append([entry])
            return
        before = next(old for old in self._journal.records if old["step"] == entry["step"])
        if abs(before["loss"] - entry["loss"]) > REPLAY_TOLERANCE * max(abs(before["loss"]), REPLAY_TOLERANCE):
            self._say(
                f"train: step {entry['step']} was replayed with loss {entry['loss']:.6g}, before it was "
                f"{before['loss']:.6g}: the machine or the number of threads is not the same"
            )

    @property
    def records(self) -> list[dict[str, Any]]:
        """All steps so far, those of earlier processes included, by step."""
        records = self._memory if self._journal is None else self._journal.records
        return sorted(records, key=lambda record: int(record["step"]))

    def close(self) -> None:
        """Close the file; the records stay readable."""
        if self._journal is not None:
            self._journal.close()
