"""What `livecodebench:PATH[:RELEASE][:FROM..TO]` asks for: the place of the files, a release and a window of dates."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ssd_lite.errors import UserError

FORM = "livecodebench:PATH[:RELEASE][:FROM..TO]"
# The paper's "v6", 131 problems (arXiv 2604.01193).
EXAMPLE = "livecodebench:test6.jsonl:2025-02-01..2025-05-31"
RELEASE = re.compile(r"(release_)?v(\d+)")
_WINDOW = re.compile(r"(\d{4}-\d{2}-\d{2})?\.\.(\d{4}-\d{2}-\d{2})?", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """The part after `livecodebench:`: `place` as it was typed; dates are of contests, inclusive, None leaves open."""

    place: str
    release: str | None = None
    start: date | None = None
    end: date | None = None

    @property
    def window(self) -> str:
        """`FROM..TO` as it was asked for, or `all`."""
        return window_text(self.start, self.end) if self.start or self.end else "all"

    def name(self, first: date, last: date) -> str:
        """The whole name with both ends of the window; the first and last contest date stand in for an open one."""
        release = f":{self.release}" if self.release else ""
        return f"livecodebench:{self.place}{release}:{window_text(self.start or first, self.end or last)}"


def window_text(start: date | None, end: date | None) -> str:
    """`FROM..TO`, with nothing for an end that is open."""
    return f"{start or ''}..{end or ''}"


def parse(rest: str, base_dir: Path) -> Asked:
    """Read the name without its head. UserError, with the form, for what is neither path, release nor window.

    The longest part that names a file or folder under `base_dir` is the path, so a path may hold colons.
    """
    place, suffixes = _path_and_suffixes(rest, base_dir)
    release, start, end = None, None, None
    if suffixes and RELEASE.fullmatch(suffixes[0]):
        release, *suffixes = suffixes
    if suffixes and ".." in suffixes[0]:
        text, *suffixes = suffixes
        start, end = _dates(text, rest)
    if suffixes:
        what = "stands after the window" if start or end else "is neither a release nor a window of dates"
        raise _refused(f"{suffixes[0]!r} {what}.", rest)
    return Asked(place, release, start, end)


def _path_and_suffixes(rest: str, base_dir: Path) -> tuple[str, Sequence[str]]:
    parts = rest.split(":")
    for length in range(len(parts), 0, -1):
        place = ":".join(parts[:length])
        if place and os.path.exists(base_dir / place):
            return place, parts[length:]
    # Nothing is there; the error that follows shall name the path alone.
    length = len(parts)
    for pattern in (_WINDOW, RELEASE):
        if length > 1 and pattern.fullmatch(parts[length - 1]):
            length -= 1
    place = ":".join(parts[:length])
    if not place:
        raise _refused("names no file or folder.", rest)
    return place, parts[length:]


def _dates(text: str, rest: str) -> tuple[date | None, date | None]:
    match = _WINDOW.fullmatch(text)
    if match is None or not any(match.groups()):
        raise _refused(f"{text!r} is no window of dates.", rest)
    start, end = (_day(day, rest) for day in match.groups())
    if start and end and start > end:
        raise _refused(f"the window {text} ends before it begins.", rest)
    return start, end


def _day(text: str | None, rest: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise _refused(f"{text} is no date ({error}).", rest) from None


def _refused(what: str, rest: str) -> UserError:
    advice = f"The form is {FORM}, e.g. {EXAMPLE}; both days count, either may be left out."
    return UserError(what, where=f"livecodebench:{rest}", next_step=advice)
