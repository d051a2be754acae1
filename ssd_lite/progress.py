"""One line on stderr for long work: how far, how fast, how long still. Redrawn on a terminal, now and then in a log.

The same goes into the run's heartbeat, for watchers elsewhere.
"""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import TextIO

from ssd_lite import heartbeat

TERMINAL_PERIOD_S = 0.5
LOG_PERIOD_S = 15.0


def duration(seconds: float) -> str:
    """`75.2` → `1m15s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def tell(text: str, stream: TextIO | None = None) -> None:
    """Write to `stream`, by default stderr, and go on where nobody reads it any more.

    A closed terminal or a dead `tee` must not end the work that the words are about.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed on our side
        stream = stream or sys.stderr
        stream.write(text)
        stream.flush()


class Progress:
    """Counts done pieces of `total` and, beside, tokens. The work done before this process is `start`."""

    def __init__(self, total: int, unit: str, label: str, *, start: int = 0, stream: TextIO | None = None) -> None:
        self._total, self._unit, self._label = total, unit, label
        self._first = self._done = start
        self._stream = sys.stderr if stream is None else stream
        self._period_s = TERMINAL_PERIOD_S if self._stream.isatty() else LOG_PERIOD_S
        self._started = time.monotonic()
        self._shown = self._started - self._period_s + min(2.0, self._period_s)
        self._tokens = 0
        self._width = 0

    def advance(self, pieces: int = 1, *, tokens: int = 0, note: str = "") -> None:
        """Count work; draws at most each half second on a terminal and each 15 s elsewhere."""
        self._done += pieces
        self._tokens += tokens
        now = time.monotonic()
        self._beat(now, note)
        if now - self._shown >= self._period_s:
            self._shown = now
            self._write(self._line(now, note))

    def _line(self, now: float, note: str) -> str:
        parts = [f"{self._label}: {self._done}/{self._total} {self._unit}"]
        if self._tokens:
            parts.append(f"{self._speed(now):.0f} tok/s")
        left = self._left(now)
        if left is not None:
            parts.append(f"{duration(left)} left")
        return " · ".join([*parts, *_card_and_cost(), *([note] if note else [])])

    def _speed(self, now: float) -> float:
        return self._tokens / max(now - self._started, 1e-6)

    def _left(self, now: float) -> float | None:
        """Seconds left at the mean pace of this process; None before its first piece and after the last."""
        fresh = self._done - self._first
        if fresh <= 0 or self._done >= self._total:
            return None
        return max(now - self._started, 1e-6) / fresh * (self._total - self._done)

    def _beat(self, now: float, note: str) -> None:
        heart = heartbeat.current()
        if heart is None:
            return
        left = self._left(now)
        heart.beat(
            label=self._label,
            done=self._done,
            total=self._total,
            unit=self._unit,
            done_here=self._done - self._first,
            seconds_here=round(now - self._started, 1),
            tokens_per_s=round(self._speed(now), 1) if self._tokens else None,
            seconds_left=None if left is None else round(left, 1),
            note=note or None,
        )

    def _write(self, line: str) -> None:
        if self._stream.isatty():
            tell("\r" + line.ljust(self._width), self._stream)
            self._width = len(line)
        else:
            tell(line + "\n", self._stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.monotonic()
        self._write(f"{self._line(now, '')} · {duration(now - self._started)} in all")
        if self._stream.isatty():
            tell("\n", self._stream)


def _card_and_cost() -> list[str]:
    """Memory of the card and money so far, where there are any."""
    memory, heart = heartbeat.card_memory(), heartbeat.current()
    parts = [f"card {memory[0] / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB"] if memory else []
    if heart is not None and heart.cost is not None:
        parts.append(f"cost {heart.cost:.2f}")
    return parts
