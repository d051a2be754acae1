"""The texts of an importance matrix: a run's training prompts and completions, or a file of the user's."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.user_path import user_path

AUTO = "auto"
_PIECE = 512  # tokens of a plain text that are read in one go


@dataclass(frozen=True)
class Importance:
    """Where a matrix comes from: a matrix in `file`, or token ids. `words` name it in the GGUF."""

    words: str
    texts: Sequence[Sequence[int]] = field(default_factory=tuple)
    file: Path | None = None

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what it is computed from, or of the file."""
        if self.file is not None:
            return hashlib.sha256(self.file.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps([list(text) for text in self.texts]).encode()).hexdigest()


def run_importance(run: RunFolder) -> Importance:
    """A run's own: the rows it was trained on, up to export.imatrix_tokens. Raises UserError where there are none."""
    starts = _line_starts(run.train_rows) if run.train_rows.is_file() else []
    if not starts:
        raise UserError(
            "has no training rows (train.jsonl) to compute an importance matrix from.",
            where=str(run.path),
            next_step="Name texts: ssd-lite export RUN --to TYPES --imatrix FILE; or set export.imatrix: false.",
        )
    texts = _chosen(len(starts), lambda i: _ids(_row(run.train_rows, starts, i)), run.recipe.export.imatrix_tokens)
    return Importance("train.jsonl", texts)


def importance_of(file: Path, folder: Path, tokens: int) -> Importance:
    """That of a file: llama.cpp's matrix in GGUF; .jsonl with prompt_ids, messages or text a line; or plain text.

    `folder` has the tokenizer. At most about `tokens` are read. Raises UserError for anything else.
    """
    from ssd_lite.engines.gguf.imatrix_file import is_gguf, read_imatrix

    file = user_path(file, "--imatrix")
    if is_gguf(file):
        read_imatrix(file)  # what is no matrix is refused before anything is made
        return Importance(file.name, file=file)
    if not file.is_file():
        raise UserError(
            "is no file.",
            where=f"--imatrix {file}",
            next_step="Name a matrix that llama-imatrix wrote, a .jsonl file or a text.",
        )
    texts = _from_jsonl(file, folder, tokens) if file.suffix == ".jsonl" else _from_text(file, folder, tokens)
    if not texts:
        raise UserError("holds no text.", where=f"--imatrix {file}")
    return Importance(file.name, texts)


def _chosen(count: int, text: Callable[[int], Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Some of `count` texts, drawn the same way each time, until they have so many tokens; only these are read."""
    from ssd_lite.engines.gguf.imatrix import LONGEST

    order = list(range(count))
    random.Random(0).shuffle(order)
    found: list[Sequence[int]] = []
    for index in order:
        if tokens <= 0:
            break
        found.append(text(index)[:LONGEST])
        tokens -= len(found[-1])
    return found


def _line_starts(file: Path) -> list[int]:
    """Where each line that is not empty begins. Rows of a long run do not fit into memory as numbers of Python."""
    starts, place = [], 0
    with open(file, "rb") as lines:
        for line in lines:
            if line.strip():
                starts.append(place)
            place += len(line)
    return starts


def _row(file: Path, starts: Sequence[int], index: int) -> dict[str, Any]:
    with open(file, "rb") as lines:
        lines.seek(starts[index])
        line = lines.readline()
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"is no JSON a line ({error}).", where=str(file)) from error
    if not isinstance(value, dict):
        raise UserError("has a line that is no JSON object.", where=str(file))
    return value


def _ids(row: dict[str, Any]) -> list[int]:
    return [*row["prompt_ids"], *row.get("completion_ids", [])]


def _from_jsonl(file: Path, folder: Path, tokens: int) -> list[Sequence[int]]:
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer, starts = ChatTokenizer.load(folder), _line_starts(file)

    def text(index: int) -> Sequence[int]:
        row = _row(file, starts, index)
        if "prompt_ids" in row:
            return _ids(row)
        if "messages" in row:
            return tokenizer.render(row["messages"])[1]
        plain = row.get("text", row.get("prompt"))
        if isinstance(plain, str):
            return tokenizer.encode(plain)
        raise UserError(
            "has a row with neither prompt_ids nor messages nor text.",
            where=str(file),
            next_step="A run's train.jsonl and samples.jsonl have prompt_ids and completion_ids.",
        )

    return _chosen(len(starts), text, tokens)


def _from_text(file: Path, folder: Path, tokens: int) -> list[Sequence[int]]:
    from ssd_lite.engines.tokenizer import ChatTokenizer

    try:
        ids = ChatTokenizer.load(folder).encode(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"is no text ({error}).", where=f"--imatrix {file}") from error
    return _chosen(-(-len(ids) // _PIECE), lambda index: ids[index * _PIECE : (index + 1) * _PIECE], tokens)
