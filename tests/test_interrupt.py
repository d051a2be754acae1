"""Signals are a wish to stop: the work in hand goes on, only a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WORK = """
import time
from ssd_lite.interrupt import listen, stop_requested
listen()
print("ready", flush=True)
while not stop_requested():
    time.sleep(0.01)
print("wish", flush=True)
time.sleep(WAIT)
print("finished", flush=True)
"""


@pytest.fixture
def start():
    """Start the work above, which goes on for `wait_s` after the wish."""
    started: list[subprocess.Popen[str]] = []

    def _start(wait_s: float) -> subprocess.Popen[str]:
        code = WORK.replace("WAIT", str(wait_s))
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield _start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_work_finish(start, number: int) -> None:
    process = start(0.2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert out == "wish\nfinished\n"
    assert process.returncode == 0


def test_a_second_ctrl_c_does_not_wait(start) -> None:
    process = start(60)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "wish\n"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert "finished" not in out
    assert "KeyboardInterrupt" in error


def test_a_second_sigterm_waits(start) -> None:
    """A spot machine may send it more than once; the grace time is the sender's."""
    process = start(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "wish\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "finished\n"
    assert process.returncode == 0
