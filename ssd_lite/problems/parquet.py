"""Rows of parquet files, batch by batch and only the columns asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssd_lite.errors import MissingLibraryError, UserError

ROWS_A_BATCH = 512


def parquet_files(path: Path) -> list[Path]:
    """The parquet files a path names, sorted: the file itself, or all files right inside the folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise UserError("holds no .parquet file.", where=str(path), next_step="Name the folder with the files in it.")
    return files


def read_rows(source: Any, columns: Sequence[str], *, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one parquet file with those of `columns` it has, at most ROWS_A_BATCH in memory.

    `source` is a path or a seekable binary file object with a `name`. UserError when it is no parquet file or lacks a
    `needed` column.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingLibraryError("pyarrow", needed_for="Reading parquet files", extra="data") from error
    where = str(getattr(source, "name", source))
    try:
        with ParquetFile(source, pre_buffer=False) as file:
            present = file.schema_arrow.names
            missing = [name for name in needed if name not in present]
            if missing:
                what = f"has no column `{missing[0]}` (columns found: {', '.join(present)})."
                raise UserError(what, where=where, next_step="Is it the right data set?")
            wanted = [name for name in columns if name in present]
            for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=wanted):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        what = f"cannot be read as parquet ({str(error).splitlines()[0]})."
        raise UserError(what, where=where, next_step="Is the file whole? Fetch it again.") from error
