"""A loaded problem set: its problems, the digest of its source and what was counted on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssd_lite.errors import UserError
from ssd_lite.records import Problem

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ProblemSet:
    """What `load_problems` returns.

    `sha256` is the digest of the source's content (not of the kept problems), `counts` says how many were read,
    dropped and kept, and `note` is one line for people: where the set comes from and what was left out.
    """

    name: str
    problems: tuple[Problem, ...]
    sha256: str
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


def sha256_of_files(paths: Sequence[Path]) -> str:
    """The hex digest of one file's bytes, or of the names and digests of several."""
    digests = [(path.name, _sha256_of_file(path)) for path in paths]
    return digests[0][1] if len(digests) == 1 else sha256_of_digests(digests)


def sha256_of_digests(digests: Sequence[tuple[str, str]]) -> str:
    """One hex digest for several `(file name, hex digest)` pairs, in the order of their names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def existing_file(path: Path) -> Path:
    """The absolute path of a file that can be read. UserError with the path that was tried otherwise."""
    found = existing_path(path)
    if not found.is_file():
        raise UserError("is a folder, a file is needed.", where=str(found), next_step="Name the file inside it.")
    return found


def existing_path(path: Path) -> Path:
    """The absolute path of a file or folder that exists. UserError with the path that was tried otherwise."""
    absolute = path.absolute()
    try:
        absolute.stat()
    except OSError as error:
        unexpanded = "~" in path.parts[:1] or "$" in str(path)
        advice = "`~` and `$NAME` are not expanded here: write the path out." if unexpanded else "Check the path."
        raise UserError(f"cannot be read ({error.strerror}).", where=str(absolute), next_step=advice) from error
    return absolute
