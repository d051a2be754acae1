"""Several GGUF types of one folder in one pass: one exact 16- or 32-bit file, every quantised type from it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from ssd_lite.engines.gguf_write import PLAIN_TYPES, write_gguf
from ssd_lite.engines.model_cache import check_space, only_writer
from ssd_lite.engines.model_folder import ModelFolder
from ssd_lite.engines.quantise import FILE_TYPES, quantise
from ssd_lite.recipe_section import Decoding


def write_gguf_set(
    folder: Path, paths: Mapping[str, Path], *, decoding: Decoding | None = None, threads: int | None = None
) -> dict[str, float]:
    """Write the files of `paths` (type → file) that are not there yet; seconds by type. Room is checked for all first.

    A file under its final name is whole, because it came by rename. The exact file is removed after if nobody asked
    for it.
    """
    missing = {gguf_type: path for gguf_type, path in paths.items() if not path.exists()}
    if not missing:
        return {}
    model = ModelFolder(folder)
    exact = next(name for name, (dtype, _) in PLAIN_TYPES.items() if dtype == model.dtype)
    quantised = [gguf_type for gguf_type in missing if gguf_type not in PLAIN_TYPES]
    asked = paths.get(exact)
    kept = [*missing, *([exact] if quantised and (asked is None or exact in missing) else [])]
    bits = sum(FILE_TYPES[gguf_type][1] for gguf_type in dict.fromkeys(kept))
    first = next(iter(missing.values()))
    check_space(first.parent, int(model.parameter_count * bits / 8), f"writing {', '.join(missing)}")
    seconds: dict[str, float] = {}
    for gguf_type, path in missing.items():
        if gguf_type in PLAIN_TYPES:
            started = time.monotonic()
            with only_writer(path):
                if not path.exists():
                    write_gguf(folder, path, gguf_type, decoding=decoding)
            seconds[gguf_type] = time.monotonic() - started
    if quantised:
        between = asked or first.with_name(f".{first.name}.exact-{os.getpid()}")
        if asked is None:
            write_gguf(folder, between, exact, decoding=decoding)
        try:
            for gguf_type in quantised:
                started = time.monotonic()
                with only_writer(paths[gguf_type]):
                    if not paths[gguf_type].exists():
                        quantise(between, paths[gguf_type], gguf_type, threads)
                seconds[gguf_type] = time.monotonic() - started
        finally:
            if asked is None:
                between.unlink(missing_ok=True)
    return seconds
