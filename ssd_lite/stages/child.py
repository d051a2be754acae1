"""A command of ours in a process of its own: under our lock, with our stop signals, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ssd_lite.errors import EXIT_STOPPED
from ssd_lite.interrupt import past_limit
from ssd_lite.run_lock import environment_with_lock

POLL_S = 0.05
# A terminal's Ctrl-C reaches the child too. Passed on later, as SIGTERM, it is never the second SIGINT that cuts short.
PASS_ON_AFTER_S = 0.5
# A stage looks at the limit of `run --max-hours` itself. One that does not come to look, because it loads a model or
# hangs, gets SIGTERM so long after the limit, and is then killed: what it saved stays.
TERMINATE_AFTER_LIMIT_S, KILL_AFTER_LIMIT_S = 300.0, 420.0
LOOK_S = 5.0
_STOPPED_CODES = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How the process of a stage ended: exit code (negative: signal), wall seconds, peak resident memory in bytes.

    `stop_asked` is True where a signal or the limit asked for it.

    The kernel counts memory from before exec, so the peak is never below that of `ssd-lite run` itself (some 40 MB).
    """

    code: int
    seconds: float
    peak_rss_bytes: int
    stop_asked: bool

    @property
    def stopped(self) -> bool:
        """True where it ended because a stop was asked for, or said so by its exit code."""
        return self.code == EXIT_STOPPED or (self.stop_asked and self.code in _STOPPED_CODES)


def run_command(
    arguments: Sequence[str],
    lock: int,
    stdout: int | None,
    asked: Sequence[float],
    look: Callable[[], None] | None = None,
) -> Ended:
    """Run `ssd-lite ARGUMENTS` in its own process under our lock; stop signals that `asked` collects are passed on.

    `look` is called each LOOK_S while it works.
    """
    started = looked = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "ssd_lite", *arguments],
        env=environment_with_lock(lock),
        pass_fds=(lock,),
        stdout=stdout,
    )
    passed_on = 0
    end_it = _AfterLimit(child)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if len(asked) > passed_on and time.monotonic() - asked[passed_on] > PASS_ON_AFTER_S:
            passed_on = len(asked)
            child.send_signal(signal.SIGTERM)
        end_it()
        if look is not None and time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            look()
        time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    stop_asked = bool(asked) or past_limit()
    code = EXIT_STOPPED if end_it.killed and child.returncode == _KILLED else child.returncode
    return Ended(code, time.monotonic() - started, peak, stop_asked)


class _AfterLimit:
    """Ends a stage that goes on after the run's limit: SIGTERM once, and then SIGKILL."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child, self._told, self.killed = child, False, False

    def __call__(self) -> None:
        if not self._told and past_limit(TERMINATE_AFTER_LIMIT_S):
            self._told = True
            self._child.send_signal(signal.SIGTERM)
        if not self.killed and past_limit(KILL_AFTER_LIMIT_S):
            self.killed = True
            self._child.kill()


@contextmanager
def stop_signals() -> Iterator[list[float]]:
    """Collect the times (monotonic seconds) of SIGTERM, SIGINT and SIGHUP; the old handlers come back at the end."""
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        # SIGTERM comes to us alone and goes on at once; of a Ctrl-C the stage may know already.
        asked.append(time.monotonic() - (PASS_ON_AFTER_S if number == signal.SIGTERM else 0))

    wanted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup, and meant so
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
