"""How many CPU threads to use, measured while the work runs: other programs may hold the cores.

Seen on two cores with one of them busy (llama.cpp, Q8_0 135M model, 16 sequences): 73 tok/s with 1 thread, 11 with 2
that spin at barriers, 53 with 2 that sleep (OMP_WAIT_POLICY=passive, which the command line therefore sets). With both
cores free: 203 and 376.
"""

from __future__ import annotations

from collections.abc import Callable

from ssd_lite.container import usable_cores

FIRST_PAUSE = 40
LONGEST_PAUSE = 320
HOPELESS = 1.3


class ThreadTuner:
    """Tries thread counts, keeps the one with the most work a second, and looks again now and then.

    With a fixed count it does nothing but set it. `apply` sets the count in the library that works. A count's cost is
    the median of its probe's steps, since a single step is noise; a probe ends at once where a step costs 1.3 times the
    best. The pause between looks doubles while the answer stays the same.
    """

    def __init__(self, apply: Callable[[int], None], fixed: int | None = None, *, steps_per_probe: int = 3) -> None:
        cores = usable_cores()
        self._candidates = [fixed] if fixed else sorted({1, max(1, cores // 2), cores})
        self._apply, self._steps_per_probe = apply, steps_per_probe
        self._costs: dict[int, list[float]] = {}
        self._queue = list(self._candidates)
        self._pause, self._waited, self._chosen = FIRST_PAUSE, 0, 0
        self.threads = self._queue[0]
        apply(self.threads)

    def step(self, seconds: float, work: float) -> None:
        """Report one step: how long it took for how much work (tokens, say). May change the thread count."""
        if len(self._candidates) == 1 or work <= 0:
            return
        if self._queue:
            self._probe(seconds / work)
            return
        self._waited += 1
        if self._waited >= self._pause:
            self._waited, self._costs, self._queue = 0, {}, list(self._candidates)
            self._set(self._queue[0])

    def _probe(self, cost: float) -> None:
        costs = self._costs.setdefault(self._queue[0], [])
        costs.append(cost)
        rivals = [self._median(count) for count in self._costs if count != self._queue[0]]
        if len(costs) < self._steps_per_probe and not (rivals and cost > HOPELESS * min(rivals)):
            return
        self._queue.pop(0)
        if self._queue:
            self._set(self._queue[0])
            return
        best = min(self._costs, key=self._median)
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if best == self._chosen else FIRST_PAUSE
        self._chosen = best
        self._set(best)

    def _median(self, count: int) -> float:
        return sorted(self._costs[count])[len(self._costs[count]) // 2]

    def _set(self, threads: int) -> None:
        if threads != self.threads:
            self.threads = threads
            self._apply(threads)
