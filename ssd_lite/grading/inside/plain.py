"""Plain data to and from JSON trees: exact built-in types only, so that nothing executable can cross the channel.

A tree is what `json` reads: lists, strings, numbers, true, false, null, and one-key objects for all that JSON lacks:
`{"t": [...]}` tuple, `{"s": [...]}` set, `{"f": [...]}` frozenset, `{"d": [[key, value], ...]}` dict, `{"i":
"-0x..."}` an int of 64 bits or more, `{"b": "hex"}` bytes, `{"c": [re, im]}` complex, `{"o": "type name"}` anything
that is not plain.
"""

from __future__ import annotations

import collections
import json
from typing import Any

MAX_DEPTH = 200
MAX_NODES = 4_000_000
_SMALL = 1 << 63
TAGS = frozenset("tsfdibco")
_FLAT = frozenset({str, bool, type(None), float})
_INTS = frozenset({int, bool})
_STANDARD = frozenset({collections.Counter, collections.defaultdict, collections.OrderedDict})
_BASES = (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, complex)
_mro = type.__dict__["__mro__"].__get__
_class_dict = type.__dict__["__dict__"].__get__
_class_name = type.__dict__["__name__"].__get__


class NotPlainError(ValueError):
    """A tree that no encoder here wrote, or a value too large to cross."""


def type_name(value: object) -> str:
    """The name of the exact type of `value`, whatever its class says of itself."""
    return str(_class_name(type(value)))[:100]


def plain_base(kind: type) -> type | None:
    """The built-in type whose equality `kind` keeps; None where it has its own, which is then not plain data."""
    if kind in _STANDARD:
        return dict
    for parent in _mro(kind):
        if parent in _BASES:
            return _BASES[_BASES.index(parent)]
        if {"__eq__", "__ne__", "__hash__"} & set(_class_dict(parent)):
            return None
    return None


def encode(value: Any) -> Any:
    """The tree of `value`. Raises NotPlainError past MAX_NODES values."""
    return _encode(value, type(value), MAX_DEPTH, [MAX_NODES])


def _encode(value: Any, kind: type, depth: int, left: list[int]) -> Any:
    if kind is str or kind is bool or value is None or kind is float:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"i": hex(value)}
    if depth <= 0:
        return {"o": "nested too deeply"}
    if kind is list:
        return _sequence(value, depth, left)
    if kind is tuple:
        return {"t": _sequence(value, depth, left)}
    if kind is dict:
        pairs = [[key, item] for key, item in dict.items(value)]
        return {"d": [_sequence(pair, depth, left) for pair in pairs]}
    if kind is set or kind is frozenset:
        return {"s" if kind is set else "f": _sequence(list(value), depth, left)}
    if kind is bytes:
        return {"b": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    base = plain_base(kind)
    return {"o": type_name(value)} if base is None else _encode(_as_base(value, base), base, depth, left)


def _sequence(value: Any, depth: int, left: list[int]) -> list[Any]:
    left[0] -= len(value) + 1
    if left[0] < 0:
        raise NotPlainError("the value has too many parts")
    kinds = set(map(type, value))
    if kinds <= _FLAT or (kinds <= _INTS and min(value) > -_SMALL and max(value) < _SMALL):
        return list(value)
    return [_encode(item, type(item), depth - 1, left) for item in value]


def _as_base(value: Any, base: Any) -> Any:
    """The content of an instance of a subclass, read by the base's own methods."""
    match base.__name__:
        case "int" | "bool":
            return int.__int__(value)
        case "float":
            return float.__float__(value)
        case "str":
            return str.__str__(value)
        case "dict":
            return dict(dict.items(value))
        case "list" | "tuple" | "set" | "frozenset":
            return base(base.__iter__(value))
        case "bytes":
            return bytes.__getitem__(value, slice(None))
        case _:
            return complex(value.real, value.imag)


def decode(tree: Any, depth: int = 2 * MAX_DEPTH) -> Any:
    """The value of a tree. Raises NotPlainError for `{"o": ...}` and for any tree `encode` does not write."""
    kind = type(tree)
    if kind is list:
        if depth <= 0:
            raise NotPlainError("nested too deeply")
        return [item if type(item) not in (list, dict) else decode(item, depth - 1) for item in tree]
    if kind is not dict:
        return tree
    if len(tree) != 1 or depth <= 0:
        raise NotPlainError("a tagged value has one key")
    ((tag, body),) = tree.items()
    try:
        return _tagged(tag, body, depth - 1)
    except (TypeError, OverflowError, ValueError) as error:
        raise NotPlainError(f"not a value: {str(error)[:80]}") from None


def _tagged(tag: str, body: Any, depth: int) -> Any:
    match tag:
        case "t":
            return tuple(decode(_list(body), depth))
        case "s":
            return set(decode(_list(body), depth))
        case "f":
            return frozenset(decode(_list(body), depth))
        case "d":
            return {decode(key, depth): decode(value, depth) for key, value in map(_list, _list(body))}
        case "i":
            return int(body, 16)
        case "b":
            return bytes.fromhex(body)
        case "c":
            return complex(*(float(part) for part in _list(body)))
        case _:
            raise NotPlainError(f"not plain data: {str(body)[:80]}")


def _list(body: Any) -> list[Any]:
    if type(body) is not list:
        raise NotPlainError("a list was expected")
    return body


def dumps(tree: Any) -> bytes:
    """One line of JSON in ASCII (lone surrogates survive), with its newline."""
    return json.dumps(tree, separators=(",", ":")).encode("ascii") + b"\n"
