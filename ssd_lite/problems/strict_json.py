"""Strict JSON Lines: every line is one well-formed object, or the error names file, line and fault."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.problems.problem_set import existing_file

MAGIC = {
    b"PAR1": "is a parquet file",
    b"\x1f\x8b": "is gzip-compressed",
    codecs.BOM_UTF16_LE: "is UTF-16",
    codecs.BOM_UTF16_BE: "is UTF-16",
    b"PK\x03\x04": "is a zip archive",
}
WANTED = "Write UTF-8 JSON Lines: one object a line."


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number from 1, object)` of a JSON Lines file, one line in memory at a time.

    Accepts a byte order mark, CRLF, empty lines and a missing last newline. UserError for anything else: other file
    types, invalid UTF-8, broken or cut-off JSON, a line that is no object, duplicate keys, NaN and infinities, and
    lone surrogates (they break later, in the tokenizer or on writing).
    """
    source = existing_file(path)
    offset = 0
    try:
        with source.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    _refuse_other_types(source, raw)
                text = _decode(raw, f"{path}:{number}", offset).removeprefix("\ufeff" if number == 1 else "")
                offset += len(raw)
                if text.strip():
                    yield number, _object(text, f"{path}:{number}", torn=not raw.endswith(b"\n"))
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror}).", where=str(source), next_step="Check the file."
        ) from error


def _refuse_other_types(path: Path, first_line: bytes) -> None:
    for magic, what in MAGIC.items():
        if first_line.startswith(magic):
            raise UserError(f"{what}, not JSON Lines.", where=str(path), next_step=WANTED)


def _decode(raw: bytes, where: str, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"invalid UTF-8 at byte {error.start + 1} of the line, byte offset {offset + error.start} of the file"
        raise UserError(f"{what} ({raw[error.start]:#04x}).", where=where, next_step="Save it as UTF-8.") from error


def _object(text: str, where: str, *, torn: bool) -> dict[str, Any]:
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        if torn:
            what = "broken JSON, and the file ends here without a newline: the last line seems cut short"
            raise UserError(f"{what}.", where=where, next_step="Restore the whole line or remove it.") from error
        what = f"broken JSON at column {error.colno} ({error.msg})"
        if text.strip() in {"[", "{"}:
            what = "one value spread over several lines, want one object a line"
        raise UserError(f"{what}.", where=where, next_step=WANTED) from error
    except RecursionError as error:
        raise UserError("JSON nested too deeply.", where=where, next_step=WANTED) from error
    except ValueError as error:
        raise UserError(f"{error}.", where=where, next_step="Mend this line.") from error
    if isinstance(value, list):
        raise UserError("this is a JSON array, want one object a line.", where=where, next_step=WANTED)
    if not isinstance(value, dict):
        raise UserError(f"this is a JSON {_json_type(value)}, want an object.", where=where, next_step=WANTED)
    if "\\u" in text:
        _refuse_surrogates(value, where)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"key {key!r} occurs twice in one object")
        value[key] = item
    return value


def _refuse_constant(literal: str) -> float:
    raise ValueError(f"{literal} is not JSON; numbers must be finite")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is too large for a float; numbers must be finite")
    return number


def _refuse_surrogates(value: object, where: str) -> None:
    match value:
        case str():
            lone = next((char for char in value if "\ud800" <= char <= "\udfff"), None)
            if lone is not None:
                what = f"a lone surrogate \\u{ord(lone):04x} in a text, which is no character"
                raise UserError(f"{what}.", where=where, next_step="Write the whole pair, or remove it.")
        case list():
            for item in value:
                _refuse_surrogates(item, where)
        case dict():
            for key, item in value.items():
                _refuse_surrogates(key, where)
                _refuse_surrogates(item, where)


def _json_type(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
