"""How many CPU threads to use, measured while the work runs: cores may be busy with others, and then fewer are faster."""

from __future__ import annotations

import os
from collections.abc import Callable

PROBE_EVERY = 40


class ThreadTuner:
    """Tries thread counts in turn, keeps the one with the most work a second, and looks again now and then.

    With a fixed count it does nothing but set it. `apply` sets the count in the library that works.
    The measure is the median of a probe's steps: a single step is noise on a shared machine.
    """

    def __init__(self, apply: Callable[[int], None], fixed: int | None = None, *, steps_per_probe: int = 3) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._candidates = [fixed] if fixed else sorted({1, max(1, cores // 2), cores}, reverse=True)
        self._apply, self._steps_per_probe = apply, steps_per_probe
        self._costs: dict[int, list[float]] = {}
        self._queue = list(self._candidates)
        self._since_probe = 0
        self.threads = self._queue[0]
        apply(self.threads)

    def step(self, seconds: float, work: float) -> None:
        """Report one step: how long it took for how much work (tokens, say). May change the thread count."""
        if len(self._candidates) == 1 or work <= 0:
            return
        if not self._queue:
            self._since_probe += 1
            if self._since_probe >= PROBE_EVERY:
                self._since_probe, self._costs, self._queue = 0, {}, list(self._candidates)
                self._set(self._queue[0])
            return
        costs = self._costs.setdefault(self._queue[0], [])
        costs.append(seconds / work)
        if len(costs) >= self._steps_per_probe:
            self._queue.pop(0)
            self._set(self._queue[0] if self._queue else self._best())

    def _best(self) -> int:
        return min(self._costs, key=lambda count: sorted(self._costs[count])[len(self._costs[count]) // 2])

    def _set(self, threads: int) -> None:
        if threads != self.threads:
            self.threads = threads
            self._apply(threads)
