"""SentencePiece vocabularies for GGUF: tokens, scores and types from tokenizer.model, or from tokenizer.json alone.

Both merge the pair whose result scores highest. tokenizer.json has no scores but the order of its merges, which is that
of the scores; so a score is the rank of the first merge that makes the token, negated.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd_lite.engines.gguf.architecture import unsupported
from ssd_lite.errors import UserError

# Token types of GGUF; SentencePiece numbers its own alike.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
# What llama.cpp's own converter gives to ids without a piece, and to added tokens.
PADDING_SCORE, ADDED_SCORE = -10000.0, -1000.0
_TO_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
# After the normaliser no space is left, so this cuts nothing (Gemma).
_IDLE_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}

Piece = tuple[str, float, int]


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """True for a tokenizer.json made from a SentencePiece BPE: characters, with bytes for those it lacks."""
    model = tokenizer.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def check_sentencepiece(tokenizer: dict[str, Any], folder: Path) -> None:
    """Raise UserError for a SentencePiece tokenizer.json that normalises or cuts text as llama.cpp does not."""
    model, where = tokenizer["model"], str(folder)
    odd = [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges") if model.get(key)
    ]
    if odd:
        raise unsupported(f"a tokenizer of the kind SentencePiece with {', '.join(odd)}", where)
    parts = _normaliser(tokenizer)
    spaces = [part for part in parts if part not in (_PREPEND, _TO_SPACE)]
    cut = tokenizer.get("pre_tokenizer") or {}
    metaspace = cut.get("type") == "Metaspace"
    if spaces:
        raise unsupported(f"a tokenizer with the normalizer {spaces[0].get('type')}", where)
    if metaspace and (cut.get("replacement") != SPACE or cut.get("split", True) or parts):
        raise unsupported("the pre-tokenizer of its tokenizer.json (Metaspace that cuts words)", where)
    if not metaspace and (_TO_SPACE not in parts or cut not in ({}, _IDLE_SPLIT)):
        raise unsupported("the pre-tokenizer of its tokenizer.json", where)
    bytes_there = sum(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    if bytes_there != 256:
        raise unsupported(f"a SentencePiece tokenizer with {bytes_there} of 256 byte tokens", where)


def puts_space_first(tokenizer: dict[str, Any], has_template: bool) -> bool:
    """Whether llama.cpp shall put a space before text that begins or follows a control token.

    It knows only both or neither. A Metaspace of the scheme "first" does so at the beginning alone: with a chat
    template every prompt begins with a control token, so that neither is right; without one, both.
    """
    cut = tokenizer.get("pre_tokenizer") or {}
    if cut.get("type") != "Metaspace":
        return _PREPEND in _normaliser(tokenizer)
    scheme = cut.get("prepend_scheme") or ("always" if cut.get("add_prefix_space", True) else "never")
    return bool(scheme == "always" or (scheme == "first" and not has_template))


def _normaliser(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    value = tokenizer.get("normalizer") or {}
    parts: list[dict[str, Any]] = value.get("normalizers", []) if value.get("type") == "Sequence" else [value]
    return [part for part in parts if part]


def pieces_of(tokenizer: dict[str, Any], folder: Path) -> dict[int, Piece]:
    """Id → (text, score, type) of the vocabulary without its added tokens' changes.

    From tokenizer.model where there is one with the same texts, because it has the scores themselves.
    """
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = {int(entry["id"]) for entry in tokenizer.get("added_tokens", [])}
    file = folder / "tokenizer.model"
    if file.is_file():
        pieces = dict(enumerate(read_pieces(file)))
        if all(index in added or (index in pieces and pieces[index][0] == text) for text, index in vocab.items()):
            return pieces
    return _pieces_from_merges(tokenizer)


def _pieces_from_merges(tokenizer: dict[str, Any]) -> dict[int, Piece]:
    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault(merge.replace(" ", "") if isinstance(merge, str) else "".join(merge), rank)
    pieces: dict[int, Piece] = {}
    for text, index in model["vocab"].items():
        if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            pieces[index] = (text, 0.0, BYTE)
        elif text == model.get("unk_token"):
            pieces[index] = (text, 0.0, UNKNOWN)
        else:
            pieces[index] = (text, -float(ranks.get(text, len(model["merges"]))), NORMAL)
    return pieces


def read_pieces(file: Path) -> list[Piece]:
    """The pieces of a SentencePiece model in order of their ids. Raises UserError if the file is none.

    Format: sentencepiece_model.proto; the message's field 1 is a piece with 1 text, 2 score (float), 3 type.
    """
    data = file.read_bytes()
    pieces: list[Piece] = []
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                fields = dict(_fields(value))
                packed, kind = fields.get(2), int(fields.get(3, NORMAL))
                score = struct.unpack("<f", packed)[0] if isinstance(packed, bytes) else 0.0
                # USER_DEFINED pieces come again as added tokens.
                pieces.append((bytes(fields[1]).decode(), score, NORMAL if kind == USER_DEFINED else kind))
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise UserError(
            f"is no SentencePiece model ({error}).", where=str(file), next_step="Fetch the model again."
        ) from error
    return pieces


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: (number, value), 4 and 8 byte values as bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position, value, shift = position + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(key & 7) if key & 7 != 2 else varint()
        if length is None or position + length > len(data):
            raise ValueError(f"a field of the kind {key & 7} at byte {position}")
        yield key >> 3, data[position : position + length]
        position += length
