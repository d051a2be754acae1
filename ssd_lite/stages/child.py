"""A command of ours in a process of its own: under our lock, with our stop signals, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ssd_lite.errors import EXIT_STOPPED
from ssd_lite.run_lock import environment_with_lock

POLL_S = 0.05
# A terminal's Ctrl-C reaches the child too. Passed on later, as SIGTERM, it is never the second SIGINT that cuts short.
PASS_ON_AFTER_S = 0.5
_STOPPED_CODES = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)


@dataclass(frozen=True)
class Ended:
    """How the process of a stage ended: exit code (negative: signal), wall seconds, peak resident memory in bytes.

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


def run_command(arguments: Sequence[str], lock: int, stdout: int | None, asked: Sequence[float]) -> Ended:
    """Run `ssd-lite ARGUMENTS` in its own process under our lock; stop signals that `asked` collects are passed on."""
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "ssd_lite", *arguments],
        env=environment_with_lock(lock),
        pass_fds=(lock,),
        stdout=stdout,
    )
    passed_on = 0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if len(asked) > passed_on and time.monotonic() - asked[passed_on] > PASS_ON_AFTER_S:
            passed_on = len(asked)
            child.send_signal(signal.SIGTERM)
        time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ended(child.returncode, time.monotonic() - started, peak, bool(asked))


@contextmanager
def stop_signals() -> Iterator[list[float]]:
    """Collect the times (monotonic seconds) of SIGTERM and SIGINT; the old handlers come back at the end."""
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        # SIGTERM comes to us alone and goes on at once; of a Ctrl-C the stage may know already.
        asked.append(time.monotonic() - (PASS_ON_AFTER_S if number == signal.SIGTERM else 0))

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
