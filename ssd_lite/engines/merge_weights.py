"""Base + adapter → a plain model folder: float32 arithmetic, one block of one tensor at a time, shard by shard."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ssd_lite.atomic import DONE_FILE, write_json
from ssd_lite.engines.adapter import Adapter
from ssd_lite.engines.model_cache import check_space
from ssd_lite.engines.model_folder import INDEX_FILE, SOURCE_FILE, ModelFolder, read_json, weight_files
from ssd_lite.engines.number_formats import BY_TORCH_NAME, CARRIERS, Array, convert, from_float32, to_float32
from ssd_lite.engines.safetensors_file import SafetensorsFile, write_safetensors
from ssd_lite.errors import UserError

# Copied byte for byte: re-saving a tokenizer has broken it for other programs, and a licence may ask to be passed on.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NOT_COPIED = (DONE_FILE, SOURCE_FILE, INDEX_FILE)


@dataclass
class Change:
    """What merging did: tensors that differ from the base in the written number format, and by how much at most."""

    tensors: int = 0
    max_abs: float = 0.0
    sum_of_squares: float = 0.0

    @property
    def norm(self) -> float:
        """Euclidean norm of the whole change."""
        return math.sqrt(self.sum_of_squares)


class _Tuned(Protocol):
    """Tuned weights: names that may differ from the base, and such a tensor's blocks (base, tuned) in float32."""

    weights: list[str]

    def blocks(self, base: ModelFolder, name: str) -> Iterator[tuple[Array, Array]]: ...


class _WithAdapter:
    """The base's blocks plus the adapter's update of their rows."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter, self.weights = adapter, adapter.weights

    def blocks(self, base: ModelFolder, name: str) -> Iterator[tuple[Array, Array]]:
        update, row = self._adapter.update(name), 0
        for block in base.blocks(name):
            old = to_float32(block, base.tensors[name].dtype)
            change = (update.b[row : row + len(old)] @ update.a) * np.float32(update.scale)
            row += len(old)
            yield old, old + change


class _Trained:
    """Weights that full fine-tuning wrote under their checkpoint names."""

    def __init__(self, folder: Path, base: ModelFolder) -> None:
        self._files: dict[str, SafetensorsFile] = {}
        for file in map(SafetensorsFile, weight_files(folder)):
            self._files |= dict.fromkeys(file.tensors, file)
        self._alias = {name: name for name in self._files}
        if base.config.get("tie_word_embeddings") and _HEAD not in self._files and _EMBEDDING in self._files:
            # Some bases store the tied head twice; both copies must move together.
            self._alias[_HEAD] = _EMBEDDING
        self.weights = [name for name in base.tensors if name in self._alias]
        for name, info in base.tensors.items():
            alias = self._alias.get(name)
            trained = self._files[alias].tensors[alias].shape if alias else None
            if trained != info.shape:
                raise UserError(
                    f"was trained on another base: {name} has the shape {trained}, the base {list(info.shape)}.",
                    where=str(folder),
                )

    def blocks(self, base: ModelFolder, name: str) -> Iterator[tuple[Array, Array]]:
        alias = self._alias[name]
        file = self._files[alias]
        for old, new in zip(base.blocks(name), file.blocks(alias), strict=True):
            yield to_float32(old, base.tensors[name].dtype), to_float32(new, file.tensors[alias].dtype)


def merge_folder(base_folder: Path, tuned: Path, out: Path, *, dtype: str, base_sha256: str) -> Change:
    """Fill the empty folder `out` with base + tuned weights; `dtype` is "base", "float32", "bfloat16" or "float16".

    `tuned` holds an adapter in PEFT's format or fully trained weights. Raises UserError if the adapter is of another
    base, if the disk is too small, or if rounding to `dtype` leaves any adapted weight as it was.
    """
    base = ModelFolder(base_folder)
    wanted = None if dtype == "base" else BY_TORCH_NAME[dtype]
    size = sum(CARRIERS[wanted or info.dtype][0] * info.count for info in base.tensors.values())
    check_space(out, size, "the merged model")
    source: _Tuned
    if (tuned / "adapter_config.json").is_file():
        source = _WithAdapter(Adapter(tuned, base, base_sha256))
    else:
        source = _Trained(tuned, base)
    change = Change()
    for shard in base.shards:
        _write_shard(base, shard, source, wanted, out / shard.path.name, change)
    _check_change(change, source, tuned, dtype)
    _copy_the_rest(base, out, wanted, size)
    return change


def _write_shard(
    base: ModelFolder, shard: SafetensorsFile, source: _Tuned, wanted: str | None, out: Path, change: Change
) -> None:
    tensors = {name: (wanted or info.dtype, info.shape) for name, info in shard.tensors.items()}
    tuned = set(source.weights)

    def blocks(name: str) -> Iterator[Array]:
        number_format, info = tensors[name][0], shard.tensors[name]
        if name not in tuned:
            for block in shard.blocks(name):
                yield convert(block, info.dtype, number_format, name)
            return
        moved = False
        for old, new in source.blocks(base, name):
            written = from_float32(new, number_format, name)
            moved = _measure(from_float32(old, number_format, name), written, number_format, change) or moved
            yield written
        change.tensors += moved

    write_safetensors(out, tensors, (blocks(name) for name in tensors))


def _measure(old: Array, new: Array, number_format: str, change: Change) -> bool:
    difference = to_float32(new, number_format) - to_float32(old, number_format)
    largest = float(np.abs(difference).max(initial=0.0))
    change.max_abs = max(change.max_abs, largest)
    change.sum_of_squares += float(np.square(difference, dtype=np.float64).sum())
    return largest > 0


def _check_change(change: Change, source: _Tuned, tuned: Path, dtype: str) -> None:
    if not math.isfinite(change.norm):
        raise UserError("has weights that are not finite.", where=str(tuned), next_step="Train with a lower rate.")
    wanted = len(source.weights) if isinstance(source, _WithAdapter) else 1
    if change.tensors < wanted:
        raise UserError(
            f"changes {change.tensors} of {wanted} weights once rounded (merge.dtype: {dtype}).",
            where=str(tuned),
            next_step="Train longer or with a higher learning_rate, or set merge.dtype: float32.",
        )


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
