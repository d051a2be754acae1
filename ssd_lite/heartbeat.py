"""`heartbeat.json` of a run: what its process does now, for watchers in another shell or on another machine.

Written by the process that works, at most each PERIOD_S, in one rename and without fsync: it is news, not a record.
Whether a process still works is the run lock's to say (`ssd-lite status`); this file only says what it last did.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "heartbeat.json"
PERIOD_S = 2.0
PRICE = "SSD_LITE_PRICE"  # money an hour, from `run --price` to its stages
# The folder of the run that a round belongs to: it is what watchers look at, so it gets the same news.
PARENT = "SSD_LITE_PARENT_RUN"
WORKING, STAGE_DONE, DONE, STOPPED, FAILED = "working", "stage done", "done", "stopped", "failed"


class Heartbeat:
    """The heart of one process that works at a stage. `spent_s`: seconds that earlier processes of the run took.

    `parent` is the folder of the run that this one is a round of.
    """

    def __init__(
        self, folder: Path, stage: str, spent_s: float, price: float | None, parent: Path | None = None
    ) -> None:
        self._files = [path / FILE for path in (folder, parent) if path is not None]
        self._spent_s, self._price = spent_s, price
        self._started = time.monotonic()
        self._written = 0.0
        self._fixed = {"stage": stage, "pid": os.getpid(), "host": socket.gethostname()}
        self._last: dict[str, Any] = {}

    def beat(self, **news: Any) -> None:
        """Write `news` (label, done, total, unit, tokens_per_s, seconds_left, note), unless it was written just now."""
        self._last = news
        if time.monotonic() - self._written >= PERIOD_S:
            self._write(WORKING)

    def end(self, state: str, error: str | None = None) -> None:
        """Write the last news, how the process ended, and the line of its error."""
        self._write(state, error)

    @property
    def cost(self) -> float | None:
        """Money the run has cost so far, None where no price was named."""
        return None if self._price is None else self._price * self._seconds / 3600

    @property
    def _seconds(self) -> float:
        return self._spent_s + time.monotonic() - self._started

    def _write(self, state: str, error: str | None = None) -> None:
        self._written = time.monotonic()
        memory = card_memory()
        value = {
            "state": state,
            **self._fixed,
            **self._last,
            "card": sys.modules["torch"].cuda.get_device_name() if memory else None,
            "card_used_bytes": memory[0] if memory else None,
            "card_total_bytes": memory[1] if memory else None,
            "run_seconds": round(self._seconds, 1),
            "cost": None if self.cost is None else round(self.cost, 4),
            "price": self._price,
            "error": error,
            **_now(),
        }
        for file in self._files:
            _replace(file, value)


_current: Heartbeat | None = None


def begin(folder: Path, stage: str) -> Heartbeat:
    """The heart of this process from now on, with its first beat; price and parent run come from the environment."""
    global _current
    price, above = os.environ.get(PRICE), os.environ.get(PARENT)
    parent = Path(above) if above else None
    _current = Heartbeat(folder, stage, _spent(parent or folder), float(price) if price else None, parent)
    _current.beat()
    return _current


def _spent(folder: Path) -> float:
    """Seconds the run took so far. A machine that was lost left no word in the manifest, but its heartbeat."""
    last = read(folder) or {}
    return max(spent_seconds(folder), float(last.get("run_seconds") or 0.0))


def spent_seconds(folder: Path) -> float:
    """Seconds that all processes of a run's stages took so far, those of its rounds included, by their manifests."""
    total = 0.0
    for file in [folder / "manifest.json", *folder.glob("rounds/*/manifest.json")]:
        try:
            processes = json.loads(file.read_text(encoding="utf-8")).get("processes", {})
            total += sum(float(entry["seconds"]) for entry in processes.values())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
    return total


def current() -> Heartbeat | None:
    """The heart of this process, None where it works at no run."""
    return _current


def finish(folder: Path, state: str, error: str | None = None) -> None:
    """Set the state of the run's heartbeat from outside, where the process that worked may be dead."""
    there = read(folder)
    if there is None or (there.get("state"), there.get("error")) == (state, error):
        return
    seconds, price = _spent(folder), there.get("price")
    cost = None if price is None else round(price * seconds / 3600, 4)
    news = {"state": state, "error": error, "run_seconds": round(seconds, 1), "cost": cost}
    _replace(folder / FILE, {**there, **news, **_now()})


def read(folder: Path) -> dict[str, Any] | None:
    """The last heartbeat of a run, None where there is none."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def card_memory() -> tuple[int, int] | None:
    """Bytes used and in all of the CUDA card that this process works on, by everyone; None without one.

    torch is asked only where the process has imported it and started CUDA: this module stays light.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free, total


def _now() -> dict[str, Any]:
    return {"updated_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "updated_unix": round(time.time(), 1)}


def _replace(file: Path, value: dict[str, Any]) -> None:
    part = file.with_name(f".{file.name}.part-{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError:  # a full disk must not stop the work over its news
        with suppress(OSError):
            part.unlink()
