"""SIGTERM and SIGINT as a wish to stop: the work in hand is finished and saved, then the stage ends with exit 75."""

from __future__ import annotations

import signal
from types import FrameType

_requested = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _requested
    if _requested and number == signal.SIGINT:
        raise KeyboardInterrupt  # a second Ctrl-C does not wait
    _requested = True


def listen() -> None:
    """From now on the first SIGTERM or SIGINT only sets the wish. Main thread only."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def stop_requested() -> bool:
    """True once a signal has asked this process to stop."""
    return _requested
