"""A check in a process of its own with a time limit: a broken library may crash or hang without taking doctor along."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_LIMIT_S = 60.0
_AFTER_KILL_S = 5.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Probed:
    """What a check gave: its facts, or what became of it instead.

    `missing` is True where a library it needs is not installed, and `trouble` then says which.
    """

    facts: dict[str, Any] | None
    trouble: str = ""
    missing: bool = False


def probe(
    name: str, limit_s: float = DEFAULT_LIMIT_S, stop: threading.Event | None = None, words: Sequence[str] = ()
) -> Probed:
    """Run a check of `doctor_probe`, told `words`, and wait `limit_s` seconds at most, or until `stop` is set."""
    command = [sys.executable, "-m", "ssd_lite.stages.checkup.probe", name, *words]
    # Its temporary files are ours: it may be killed, and then cleans nothing.
    with tempfile.TemporaryDirectory(prefix="ssd-lite-doctor-", ignore_cleanup_errors=True) as place:
        code, out, err = run_limited(command, limit_s, stop, {"TMPDIR": place})
    if code is None:
        return Probed(None, f"did not answer within {limit_s:.0f} s")
    if code < 0:
        return Probed(None, f"ended by {_signal_name(-code)}")
    try:
        said = json.loads(out)
    except ValueError:
        return Probed(None, f"ended with {code}: {_last_line(err)}")
    if "trouble" in said:
        return Probed(None, said["trouble"], said["missing"])
    return Probed(said)


def run_limited(
    command: list[str],
    limit_s: float,
    stop: threading.Event | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int | None, str, str]:
    """Exit code (negative: signal; None: took too long and was killed), stdout and stderr of a command.

    127 where there is no such command. It and what it started are in a process group of their own, which is killed at
    the limit, where `stop` is set and where we are interrupted. `environment` is added to ours.
    """
    try:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        return 127, "", f"{error.strerror}"
    with _killed_at_the_end(child):
        until = time.monotonic() + limit_s
        while time.monotonic() < until and not (stop is not None and stop.is_set()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = child.communicate(timeout=_POLL_S)
                return child.returncode, _text(out), _text(err)
    return None, "", ""


@contextlib.contextmanager
def _killed_at_the_end(child: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            # A process that waits in the kernel for a card does not die at once; it is not waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=_AFTER_KILL_S)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a word"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
