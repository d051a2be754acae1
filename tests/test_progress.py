"""The progress line: counts, speed and time left, quiet in a log, redrawn on a terminal."""

from __future__ import annotations

import io

import pytest

from ssd_lite import progress
from ssd_lite.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose only entry is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75.2, "1m15s"), (3599.6, "1h00m"), (3661, "1h01m"), (90000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_few_lines(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(100, "samples", "sample", stream=stream) as shown:
        for _ in range(60):
            clock[0] += 1
            shown.advance(1, tokens=20)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert lines[0] == "sample: 2/100 samples · 20 tok/s · 1m38s left"
    assert lines[-1] == "sample: 60/100 samples · 20 tok/s · 40s left · 1m00s in all"
    assert len(lines) == 5


def test_a_terminal_line_is_redrawn_and_nothing_of_a_longer_one_stays(clock: list[float]) -> None:
    stream = Terminal()
    with Progress(3, "steps", "train", stream=stream) as shown:
        for note in ("a long note", "", ""):
            clock[0] += 1
            shown.advance(note=note)
    drawn = stream.getvalue().split("\r")[1:]
    assert drawn[0].endswith("a long note")
    assert len(drawn[1]) == len(drawn[0])
    assert drawn[-1] == "train: 3/3 steps · 3s in all\n"


def test_a_terminal_is_not_drawn_more_often_than_twice_a_second(clock: list[float]) -> None:
    stream = Terminal()
    shown = Progress(1000, "steps", "train", stream=stream)
    for _ in range(100):
        clock[0] += 0.01
        shown.advance()
    assert 1 <= stream.getvalue().count("\r") <= 2


def test_time_left_counts_only_the_work_of_this_process(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(100, "samples", "sample", start=90, stream=stream)
    clock[0] += 20
    shown.advance(5)
    assert stream.getvalue() == "sample: 95/100 samples · 20s left\n"


def test_nothing_to_do_is_no_division_by_zero() -> None:
    stream = io.StringIO()
    with Progress(0, "samples", "sample", stream=stream):
        pass
    assert stream.getvalue() == "sample: 0/0 samples · 0s in all\n"


class Gone(io.StringIO):
    """A stream whose reader went away; `tty` for a terminal that was closed."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def write(self, text: str) -> int:
        raise OSError(5 if self._tty else 32, "gone")


@pytest.mark.parametrize("tty", [True, False])
def test_work_goes_on_where_nobody_watches_any_more(clock: list[float], tty: bool) -> None:
    done = 0
    with Progress(10, "steps", "training", stream=Gone(tty)) as shown:
        for _ in range(10):
            clock[0] += 20
            shown.advance()
            done += 1
    assert done == 10
