"""Equality, judged outside the sandbox: trees of plain data against expected values, and outputs by lines and decimals.

No hash table is ever built from a program's values, so colliding keys cannot stall the grader: lookups go the other
way.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from ssd_lite.grading.inside import plain

# Linear in the length of a word that is no number.
_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)
_NUMBERS = (bool, int, float, complex)


def same(tree: Any, expected: Any, *, tolerance: float | None = None, strict: bool = False) -> bool:
    """Is the value of `tree` equal to `expected`, an exact built-in value?

    Numbers compare as in Python (3 == 3.0, NaN equals nothing); with a tolerance, floats are equal within it,
    absolutely or relatively. Unless `strict`, a tuple counts as a list, because the expected value comes from JSON.
    """
    try:
        return _same(tree, expected, tolerance, strict)
    except (RecursionError, plain.NotPlainError, TypeError, IndexError):
        return False


def _same(tree: Any, expected: Any, tolerance: float | None, strict: bool) -> bool:
    tag, body = _open(tree)
    kind = type(expected)
    if kind in (list, tuple):
        if tag not in ("l", "t") or (strict and (tag == "t") != (kind is tuple)) or len(body) != len(expected):
            return False
        return all(_same(item, want, tolerance, strict) for item, want in zip(body, expected, strict=True))
    if kind is dict:
        return tag == "d" and len(body) == len(expected) and _same_dict(body, expected, tolerance, strict)
    if kind in (set, frozenset):
        return tag in ("s", "f") and len(body) == len(expected) and _same_set(body, expected)
    if tag in ("i", "c", "b"):
        body = plain.decode({tag: body})
    elif tag:
        return False
    return _same_scalar(body, expected, tolerance)


def _open(tree: Any) -> tuple[str, Any]:
    """The tag of a tree ("" for a scalar, "l" for a list) and what it holds."""
    if type(tree) is list:
        return "l", tree
    if type(tree) is not dict:
        return "", tree
    if len(tree) != 1:
        raise plain.NotPlainError("a tagged value has one key")
    ((tag, body),) = tree.items()
    if tag not in plain.TAGS:
        raise plain.NotPlainError("an unknown tag")
    if tag in ("t", "s", "f", "d") and type(body) is not list:
        raise plain.NotPlainError("a list was expected")
    return tag, body


def _same_scalar(value: Any, expected: Any, tolerance: float | None) -> bool:
    if type(value) in _NUMBERS and type(expected) in _NUMBERS:
        if value == expected:
            return True
        if tolerance is None or complex in (type(value), type(expected)) or float not in (type(value), type(expected)):
            return False
        try:
            return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:
            return False
    return type(value) is type(expected) and bool(value == expected)


def _same_dict(pairs: list[Any], expected: dict[Any, Any], tolerance: float | None, strict: bool) -> bool:
    own, most = {key: key for key in expected}, _largest(expected)
    seen = set()
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or _parts(pair[0], most) > most:
            return False
        key = plain.decode(pair[0])
        if _unhashable(key) or key not in own or not _same(pair[1], expected[key], tolerance, strict):
            return False
        seen.add(own[key])
    return len(seen) == len(expected)


def _same_set(items: list[Any], expected: Any) -> bool:
    own, most = {item: item for item in expected}, _largest(expected)
    seen = set()
    for tree in items:
        if _parts(tree, most) > most:
            return False
        item = plain.decode(tree)
        if _unhashable(item) or item not in own:
            return False
        seen.add(own[item])
    return len(seen) == len(expected)


def _largest(expected: Any) -> int:
    """Parts of the largest key that is expected."""
    return max((_parts(plain.encode(key)) for key in expected), default=0)


def _parts(tree: Any, most: int = plain.MAX_NODES) -> int:
    """How many values a tree holds, counted up to one more than `most`: a key with more than any expected equals none,

    and building a set of a program's colliding values could take for ever.
    """
    count, waiting = 0, [tree]
    while waiting and count <= most:
        one = waiting.pop()
        count += 1
        if type(one) is dict:
            waiting += [part for tag, body in one.items() if tag in ("t", "s", "f", "d") for part in body]
        elif type(one) is list:
            waiting += one
    return count


def _unhashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False


def same_output(output: bytes, expected: str) -> bool:
    """Do two outputs agree line by line, words within a line, numbers as exact decimals (0.50 is 0.5)?

    White space at line ends and empty lines at the end or start of the output do not count; the number of lines does.
    """
    try:
        text = output.decode("utf-8")
    except UnicodeDecodeError:
        return False
    ours, theirs = _lines(text), _lines(expected)
    if ours == theirs:
        return True
    return len(ours) == len(theirs) and all(_same_line(a, b) for a, b in zip(ours, theirs, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    left, right = ours.split(), theirs.split()
    return len(left) == len(right) and all(_same_word(a, b) for a, b in zip(left, right, strict=True))


def _same_word(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    if not (_DECIMAL.fullmatch(theirs) and _DECIMAL.fullmatch(ours)):
        return False
    try:
        return Decimal(ours) == Decimal(theirs)
    except InvalidOperation:
        return False
