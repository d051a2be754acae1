"""The GGUF files of a source: claimed, written in one pass, or in two where a matrix is computed between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_lite.errors import UserError
from ssd_lite.progress import Progress
from ssd_lite.recipe_section import UNAFFECTED, Decoding
from ssd_lite.run_folder import make_out_folder
from ssd_lite.stages.exports.importance import Importance
from ssd_lite.stages.exports.source import Source, claim

if TYPE_CHECKING:
    from ssd_lite.engines.gguf.imatrix_file import Imatrix
    from ssd_lite.engines.gguf.model import Weights


@dataclass
class Files:
    """Exported files: path by type, seconds of work by type, and the matrix that some were made with."""

    paths: dict[str, Path]
    seconds: dict[str, float] = field(default_factory=dict)
    imatrix: Path | None = None


def gguf_path(out: Path, name: str, gguf_type: str, *, with_matrix: bool = False) -> Path:
    """NAME-TYPE.gguf, or NAME-imatrix-TYPE.gguf for what a matrix has changed."""
    named = with_matrix and gguf_type not in UNAFFECTED
    return out / f"{name}{'-imatrix' if named else ''}-{gguf_type}.gguf"


def write_files(
    source: Source,
    types: Sequence[str],
    out: Path,
    *,
    decoding: Decoding | None = None,
    importance: Importance | None = None,
    threads: int | None = None,
) -> Files:
    """Write the types that are not in `out` yet, which is made. UserError where a file there is of another source."""
    paths = {name: gguf_path(out, source.name, name, with_matrix=importance is not None) for name in types}
    files = Files(paths)
    make_out_folder(out)
    for gguf_type, path in paths.items():
        affected = importance is not None and gguf_type not in UNAFFECTED
        claim(path, source, decoding, importance.digest if importance and affected else None)
    wanted = importance is not None and any(name not in UNAFFECTED for name in paths)
    if all(path.exists() for path in paths.values()):
        if importance is not None and wanted and importance.file is None:
            files.imatrix = _own_matrix(source, out, importance)
        return files
    weights, matrix = source.open(), None
    if importance is not None and wanted:
        matrix = _matrix(source, weights, files, out, decoding, importance, threads)
    files.seconds |= _write(source, weights, paths, decoding, matrix, threads)
    return files


def _write(
    source: Source,
    weights: Path | Weights,
    paths: Mapping[str, Path],
    decoding: Decoding | None,
    matrix: Imatrix | None,
    threads: int | None,
) -> dict[str, float]:
    from ssd_lite.engines.gguf.set import write_gguf_set

    return write_gguf_set(
        weights, paths, name=source.name, decoding=decoding, imatrix=matrix, threads=threads, say=_say
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _matrix_path(source: Source, out: Path) -> Path:
    return out / f"{source.name}-imatrix.gguf"


def _own_matrix(source: Source, out: Path, importance: Importance) -> Path | None:
    """The matrix that an export of before computed from the same; None where it is gone or another one."""
    path = _matrix_path(source, out)
    if path.exists():
        with contextlib.suppress(UserError):
            claim(path, source, None, importance.digest)
            return path
    return None


def _matrix(
    source: Source,
    weights: Path | Weights,
    files: Files,
    out: Path,
    decoding: Decoding | None,
    importance: Importance,
    threads: int | None,
) -> Imatrix:
    """The matrix that was given, or that llama.cpp computes with a q8_0 of the same weights."""
    from ssd_lite.engines.gguf.imatrix import compute_imatrix
    from ssd_lite.engines.gguf.imatrix_file import read_imatrix

    if importance.file is not None:
        return read_imatrix(importance.file)
    files.imatrix = _matrix_path(source, out)
    claim(files.imatrix, source, None, importance.digest)
    if files.imatrix.exists():
        _hidden(source, out).unlink(missing_ok=True)  # a kill may have come between writing the one and removing it
        return read_imatrix(files.imatrix)
    _check_room(weights, files.paths, out)
    unaffected = {name: path for name, path in files.paths.items() if name in UNAFFECTED}
    with _reading_model(source, unaffected, out) as q8_0:
        files.seconds |= _write(source, weights, {**unaffected, "q8_0": q8_0}, decoding, None, threads)
        tokens = sum(map(len, importance.texts))
        with Progress(tokens, "tokens", "imatrix") as progress:
            return compute_imatrix(
                q8_0,
                importance.texts,
                files.imatrix,
                dataset=importance.words,
                advance=progress.advance,
                threads=threads,
            )


@contextlib.contextmanager
def _reading_model(source: Source, paths: Mapping[str, Path], out: Path) -> Iterator[Path]:
    """Where the q8_0 lies that llama.cpp reads with; one that nobody asked for is hidden, and removed in the end.

    Where the matrix is cut short it stays, for the next try.
    """
    hidden = _hidden(source, out)
    yield paths.get("q8_0", hidden)
    hidden.unlink(missing_ok=True)


def _hidden(source: Source, out: Path) -> Path:
    """Named after what it is made from, so that no export touches another's."""
    origin = hashlib.sha256(json.dumps(source.origin, sort_keys=True).encode()).hexdigest()
    return out / f".{source.name}-q8_0-{origin[:12]}.gguf"


def _check_room(weights: Path | Weights, paths: Mapping[str, Path], out: Path) -> None:
    """Room for both passes, by the table that `plan` uses: what each will take is known only before it."""
    from ssd_lite.engines.gguf.types import FILE_TYPES
    from ssd_lite.engines.weights.model_cache import check_space
    from ssd_lite.engines.weights.model_folder import ModelFolder

    tensors = (ModelFolder(weights) if isinstance(weights, Path) else weights).tensors
    numbers = sum(info.count for info in tensors.values())
    missing = {name for name, path in paths.items() if not path.exists()} | {"q8_0"}
    bits = sum(FILE_TYPES[name][1] for name in missing)
    check_space(out, int(numbers * bits / 8), f"writing {', '.join(paths)}")
