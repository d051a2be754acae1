"""Base + adapter → a plain model folder: float32 arithmetic, one block of one tensor at a time, shard by shard."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ssd_lite.atomic import DONE_FILE, write_json
from ssd_lite.engines.weights.merged_weights import Change, Dequantised, MergedWeights
from ssd_lite.engines.weights.model_cache import check_space
from ssd_lite.engines.weights.model_folder import INDEX_FILE, SOURCE_FILE, ModelFolder, read_json
from ssd_lite.engines.weights.number_formats import BY_TORCH_NAME
from ssd_lite.engines.weights.safetensors_file import write_safetensors

# Copied byte for byte: re-saving a tokenizer has broken it for other programs, and a licence may ask to be passed on.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
_NOT_COPIED = (DONE_FILE, SOURCE_FILE, INDEX_FILE)


def merge_folder(
    base_folder: Path,
    tuned: Path,
    out: Path,
    *,
    dtype: str,
    base_sha256: str,
    quantised: Dequantised | None = None,
) -> Change:
    """Fill the empty folder `out` with base + tuned weights; `dtype` is "base", "float32", "bfloat16" or "float16".

    `tuned` holds an adapter in PEFT's format or fully trained weights. `quantised` is the base as QLoRA saw it: its
    dequantised weights then stand for the base's, and the change is counted from them. UserError if the adapter is of
    another base, if the disk is too small, or if rounding to `dtype` leaves any adapted weight as it was.
    """
    merged = MergedWeights(base_folder, tuned, dtype=dtype, base_sha256=base_sha256, quantised=quantised)
    base, tensors = merged.base, merged.tensors
    size = sum(info.nbytes for info in tensors.values())
    check_space(out, size, "the merged model")
    for shard in base.shards:
        written = {name: (tensors[name].dtype, tensors[name].shape) for name in shard.tensors}
        write_safetensors(out / shard.path.name, written, map(merged.blocks, written))
    merged.check()
    _copy_the_rest(base, out, merged.wanted, size)
    return merged.change


def _copy_the_rest(base: ModelFolder, out: Path, wanted: str | None, size: int) -> None:
    for path in sorted(base.folder.iterdir()):
        if path.is_file() and path.name not in _NOT_COPIED and any(fnmatch(path.name, p) for p in _COPIED):
            shutil.copyfile(path, out / path.name)
    if wanted is not None and wanted != base.dtype:
        write_json(out / "config.json", _with_dtype(base.config, wanted))
    index = base.folder / INDEX_FILE
    if index.is_file():
        value = read_json(index)
        if value.get("metadata", {}).get("total_size") in (None, size):
            shutil.copyfile(index, out / INDEX_FILE)
        else:
            value["metadata"]["total_size"] = size
            (out / INDEX_FILE).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _with_dtype(config: dict[str, Any], wanted: str) -> dict[str, Any]:
    name = next(long for long, short in BY_TORCH_NAME.items() if short == wanted)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, key: name}
