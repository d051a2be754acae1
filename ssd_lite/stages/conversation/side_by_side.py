"""Two texts that grow at once, shown as two columns: a row is printed when both sides have it whole."""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Callable, Sequence

NARROWEST = 60
"""Below so many characters of a terminal columns would be of no use."""


def visible(text: str) -> str:
    """A model's text with control characters shown instead of sent to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


class Columns:
    """Rows of two columns, each `(width - 3) // 2` wide, given to `write` as they become whole.

    Lines are broken at spaces where there is one, and characters of double width count twice.
    """

    def __init__(self, titles: Sequence[str], width: int, write: Callable[[str], None]) -> None:
        self._room, self._write = (width - 3) // 2, write
        self._whole: tuple[deque[str], deque[str]] = (deque(), deque())
        self._open, self._ended = ["", ""], [False, False]
        self._row(*titles)
        self._row("─" * self._room, "─" * self._room)

    def add(self, side: int, piece: str) -> None:
        """More text of the left (0) or right (1) side."""
        for char in visible(piece).replace("\t", "    "):
            if char == "\n":
                self._break(side)
                continue
            if wide(self._open[side]) + wide(char) > self._room:
                self._wrap(side)
            self._open[side] += char
        self._flush()

    def end(self, side: int) -> None:
        """A side has no more text."""
        if self._open[side]:
            self._break(side)
        self._ended[side] = True
        self._flush()

    def _break(self, side: int) -> None:
        self._whole[side].append(self._open[side])
        self._open[side] = ""

    def _wrap(self, side: int) -> None:
        line = self._open[side]
        cut = line.rfind(" ", len(line) // 2) + 1
        if cut:
            self._whole[side].append(line[:cut].rstrip())
            self._open[side] = line[cut:]
        else:
            self._break(side)

    def _flush(self) -> None:
        left, right = self._whole
        while (left or self._ended[0]) and (right or self._ended[1]) and (left or right):
            self._row(left.popleft() if left else "", right.popleft() if right else "")

    def _row(self, left: str, right: str) -> None:
        left, right = (_clipped(text, self._room) for text in (left, right))
        self._write(f"{left}{' ' * (self._room - wide(left))} │ {right}".rstrip() + "\n")


def wide(text: str) -> int:
    """Cells of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _clipped(text: str, room: int) -> str:
    while wide(text) > room:
        text = text[:-1]
    return text
