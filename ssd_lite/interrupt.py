"""The wish to stop, by a signal or a limit: the work in hand is finished and saved, then it ends with exit 75."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

# When `run --max-hours` or `--max-cost` ends, in seconds of the monotonic clock, which all processes of a machine share
# and nobody sets back. In the environment, so that every stage, and what it starts, knows it.
STOP_AT = "SSD_LITE_STOP_AT"

_requested = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _requested
    if _requested and number == signal.SIGINT:
        raise KeyboardInterrupt  # a second Ctrl-C does not wait
    _requested = True


def listen() -> None:
    """From now on the first SIGTERM, SIGINT or SIGHUP only sets the wish. Main thread only."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup, and meant so
        signal.signal(signal.SIGHUP, _on_signal)


def stop_requested() -> bool:
    """True once a signal or the limit has asked this process to stop."""
    return _requested or past_limit()


def past_limit(grace_s: float = 0.0) -> bool:
    """True once the run's limit is over, and `grace_s` seconds after it."""
    text = os.environ.get(STOP_AT)
    return text is not None and time.monotonic() > float(text) + grace_s
