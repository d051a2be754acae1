"""llama.cpp's importance matrix: how large each column's inputs are, in its GGUF format, written and read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.atomic import replace_when_whole
from ssd_lite.errors import MissingLibraryError, UserError

# llama.cpp keeps no more bytes of a text that it notes in a file made with a matrix.
_NOTED_BYTES = 127
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """For each weight, by GGUF name, the mean square of what every column is multiplied with, [columns] float32.

    `file` and `dataset` are names for the record, `chunks` how many pieces of text it was computed from.
    """

    columns: Mapping[str, NDArray[np.float32]]
    file: str
    dataset: str
    chunks: int

    @property
    def digest(self) -> str:
        """Hex SHA-256 over names and numbers."""
        state = hashlib.sha256()
        for name in sorted(self.columns):
            state.update(f"{name}\n".encode() + self.columns[name].tobytes())
        return state.hexdigest()


def write_imatrix(
    path: Path, sums: Mapping[str, NDArray[Any]], counts: Mapping[str, int], *, dataset: str, chunks: int, size: int
) -> None:
    """Write sums of squares [columns] and numbers of tokens by weight; `chunks` pieces of at most `size` tokens."""
    writer = _gguf().GGUFWriter(None, "")
    writer.kv_data[0].clear()  # such a file names no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", size)
    for name in sorted(sums):
        writer.add_tensor(name + _SUMS, sums[name].astype(np.float32))
        writer.add_tensor(name + _COUNTS, np.array([counts[name]], np.float32))
    with replace_when_whole(path) as part:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read one, also as llama-imatrix writes it. Raises UserError for anything else."""
    try:
        reader = _gguf().GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: np.asarray(tensor.data, np.float32).ravel() for tensor in reader.tensors}
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}.", where=str(path)) from error
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise _no_matrix(path, str(error)) from error
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    if fields.get("general.type") != "imatrix" or not names:
        raise _no_matrix(path, "it holds something else")
    columns = {}
    for name in names:
        sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS, np.zeros(1, np.float32))
        if len(counts) != 1:
            raise UserError(f"{name} is of a mixture of experts, which is not exported here.", where=str(path))
        columns[name] = sums / counts[0] if counts[0] > 0 else np.ones_like(sums)
        if not np.isfinite(columns[name]).all():
            raise UserError(f"{name} has numbers that are not finite.", where=str(path))
    datasets = fields.get("imatrix.datasets") or [""]
    return Imatrix(columns, noted(path.name), noted(str(datasets[0])), int(fields.get("imatrix.chunk_count", 0)))


def noted(text: str) -> str:
    """A name as short as llama.cpp notes it."""
    return text.encode()[:_NOTED_BYTES].decode("utf-8", errors="ignore")


def is_gguf(path: Path) -> bool:
    """True for a file that begins as a GGUF does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingLibraryError("gguf", needed_for="An importance matrix", extra="gguf") from error
    return gguf


def _no_matrix(path: Path, why: str) -> UserError:
    return UserError(
        f"is no importance matrix in llama.cpp's GGUF format ({why}).",
        where=str(path),
        next_step="Write it with llama-imatrix --output-format gguf, or name prompts.",
    )
