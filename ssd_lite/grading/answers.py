"""Is an answer in words right? Finds the final answer in a completion and compares it, exactly, with the expected one.

Where the answer stands: the last `#### x` line; else the last `\\boxed{x}`; else what follows the last "answer is"
or "Answer:"; else, where a number is expected, the last number of the text, and where words are, its last line. A place
that holds no number is passed over where a number is expected.

When it is right: an expected answer that is a number is compared as a number, exactly (`fractions.Fraction`), so that
1,234.50 = $1234.5 = 2469/2 = \\frac{2469}{2}. Signs of currency and percent are units and count for nothing: 50 % is 50
and not 0.5. Nothing is rounded. Any other expected answer is words, equal if the same without case, white space, outer
emphasis, quotes, brackets and end stops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

# Longer numbers are no answers, and would take Python long to read.
_MOST_DIGITS = 400
_MOST_IN_BOX = 1000
_MOST_BOXES = 20

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w))?"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?)\s?(?:[$€£¥]\s?)?(?P<second>[-+]?)"
    rf"(?:(?P<whole>\d{{1,9}})\s+(?P<part>\d{{1,9}}/\d{{1,9}})(?![\w/])|(?P<top>{_DECIMAL})(?:\s?/\s?(?P<under>{_DECIMAL}))?)"
)
_MARK = re.compile(r"^[ \t]*####[ \t]*(?P<rest>\S[^\n]*)$", re.M)
_SAID = re.compile(r"\banswer(?:\s+is|\s*[:=])[ \t]*:?", re.I)
# A line `#### 72 clips` is an answer, the heading `#### 3. Add the totals` is none.
_AFTER_NUMBER = re.compile(r"[\s%$€£¥*_`.]*|\s*%?(?:\s+_{0,2}[^\W\d_]+[.,!*_]*){1,4}\s*")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]{1,400})\}\s*\{([^{}]{1,400})\}")
_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,;:! ]|\\(?:left|right)(?![a-z])|~")
_OUTER = " \t*_`\"'“”‘’.,;:!()[]{}$"

Finding = tuple[Literal["pass", "wrong_answer", "no_answer"], str]


def judge(text: str, expected: str) -> Finding:
    """The verdict on an answer whose thinking is removed, and one short line; see the rules above."""
    number = number_of(expected)
    if number is not None:
        value = final_number(text)
        if value is None:
            return "no_answer", "the completion holds no number"
        detail = f"answered {_short(value)}, expected {expected:.60}"
        return ("pass", "") if value == number else ("wrong_answer", detail)
    words = final_text(text)
    if words is None:
        return "no_answer", "the completion is empty"
    right = folded(words) == folded(expected)
    return ("pass", "") if right else ("wrong_answer", f"answered {words[:60]!r}, expected {expected[:60]!r}")


def number_of(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else but signs of currency and percent; None for any other."""
    cleaned = _plain(text).strip().strip("*_`").rstrip(".").replace("%", " ").strip(" \t$€£¥")
    found = _NUMBER.match(cleaned)
    return _value(found) if found is not None and found.end() == len(cleaned) else None


def final_number(text: str) -> Fraction | None:
    """The number a completion ends up with; None where it holds none."""
    for place in _places(text, numeric=True):
        value = _first_number(place)
        if value is not None:
            return value
    values = map(_value, reversed(list(_NUMBER.finditer(_plain(text)))))
    return next((value for value in values if value is not None), None)


def final_text(text: str) -> str | None:
    """The words a completion ends up with; None where it is empty."""
    for place in _places(text, numeric=False):
        if folded(place):
            return place.strip()
    lines = [line for line in text.splitlines() if folded(line)]
    return lines[-1].strip() if lines else None


def folded(text: str) -> str:
    """A text as it is compared: one space between words, no case, nothing around it."""
    return " ".join(_plain(text).split()).strip(_OUTER).casefold()


def _places(text: str, *, numeric: bool) -> Iterator[str]:
    """Where an answer may stand, the surest place first."""
    marked = [found["rest"] for found in _MARK.finditer(text)]
    if numeric:
        marked = [rest for rest in marked if _is_number_line(rest)]
    yield from marked[-1:]
    boxed = _last_boxed(text)
    if boxed is not None:
        yield boxed
    ends = [found.end() for found in _SAID.finditer(text)]
    for rest in (text[end:].partition("\n")[0] for end in ends[-1:]):
        yield rest if numeric else re.split(r"\.(?:\s|$)", rest)[0]


def _is_number_line(rest: str) -> bool:
    line = _plain(rest).lstrip("*_` ")
    found = _NUMBER.match(line)
    return found is not None and _AFTER_NUMBER.fullmatch(line, found.end()) is not None


def _last_boxed(text: str) -> str | None:
    r"""What stands in the last whole `\boxed{...}`, whose braces may be nested."""
    end = len(text)
    for _ in range(_MOST_BOXES):
        start, depth = text.rfind("\\boxed{", 0, end), 0
        if start < 0:
            return None
        for place in range(start + len("\\boxed"), min(len(text), start + _MOST_IN_BOX)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : place]
        end = start
    return None


def _first_number(place: str) -> Fraction | None:
    """The number a place states: behind its last equals sign, the first one."""
    plain = _plain(place)
    for part in (plain.rpartition("=")[2], plain):
        for found in _NUMBER.finditer(part):
            value = _value(found)
            if value is not None:
                return value
    return None


def _plain(text: str) -> str:
    """LaTeX and typography as plain signs: fractions with a slash, no thin spaces, one kind of minus."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = _SPACES.sub("", text) if "\\" in text or "~" in text else text
    return _WORDS.sub(r" \1 ", _FRACTION.sub(r"\1/\2", text)) if "\\" in text else text


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > _MOST_DIGITS:
        return None
    negative = "-" in (found["sign"], found["second"])
    try:
        if found["whole"] is not None:
            value = int(found["whole"]) + Fraction(found["part"])
        else:
            value = Fraction(found["top"].replace(",", "")) / Fraction((found["under"] or "1").replace(",", ""))
    except ZeroDivisionError:
        return None
    return -value if negative else value


def _short(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
