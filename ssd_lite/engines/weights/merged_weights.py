"""Base + tuned weights, tensor by tensor: float32 arithmetic, a block of rows at a time, and how much they changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ssd_lite.engines.weights.adapter import BASE_FILE, Adapter, refuse_another_base
from ssd_lite.engines.weights.model_folder import ModelFolder, weight_files
from ssd_lite.engines.weights.number_formats import BY_TORCH_NAME, Array, convert, from_float32, to_float32
from ssd_lite.engines.weights.safetensors_file import SafetensorsFile, TensorInfo
from ssd_lite.errors import UserError

_EMBEDDINGS, _HEADS = ("embed_tokens.weight", "wte.weight"), ("lm_head.weight", "language_model.lm_head.weight")
_ADAPTER_CONFIG = "adapter_config.json"


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


class Dequantised(Protocol):
    """A base that was quantised to be trained on: which weights that changed, and such a weight in float32."""

    @property
    def weights(self) -> list[str]: ...

    def array(self, weight: str) -> Array: ...


class _Tuned(Protocol):
    """Tuned weights: names that are not copied, and such a tensor's blocks (before, after training) in float32.

    `must_move` counts those that training must have changed.
    """

    weights: list[str]
    must_move: int

    def blocks(self, base: ModelFolder, name: str) -> Iterator[tuple[Array, Array]]: ...


class _WithAdapter:
    """The base's blocks, dequantised where `quantised` has them, plus the adapter's update of their rows."""

    def __init__(self, adapter: Adapter, quantised: Dequantised | None) -> None:
        self._adapter, self._quantised = adapter, quantised
        self._adapted, self._coarse = set(adapter.weights), set(quantised.weights if quantised else ())
        self.weights = [*adapter.weights, *sorted(self._coarse - self._adapted)]
        self.must_move = len(self._adapted)

    def blocks(self, base: ModelFolder, name: str) -> Iterator[tuple[Array, Array]]:
        if name not in self._adapted:
            yield from ((block, block) for block in self._before(base, name))
            return
        update, row = self._adapter.update(name), 0
        for old in self._before(base, name):
            change = (update.b[row : row + len(old)] @ update.a) * np.float32(update.scale)
            row += len(old)
            yield old, old + change

    def _before(self, base: ModelFolder, name: str) -> Iterator[Array]:
        if self._quantised is not None and name in self._coarse:
            yield self._quantised.array(name)
            return
        for block in base.blocks(name):
            yield to_float32(block, base.tensors[name].dtype)


class _Trained:
    """Weights that full fine-tuning wrote under their checkpoint names; what it did not train stays the base's."""

    def __init__(self, folder: Path, base: ModelFolder, base_sha256: str) -> None:
        refuse_another_base(folder, base_sha256)
        self._files: dict[str, SafetensorsFile] = {}
        for file in map(SafetensorsFile, weight_files(folder)):
            self._files |= dict.fromkeys(file.tensors, file)
        self._alias = {name: name for name in self._files}
        self._alias |= _tied_heads(self._files, base)
        self.weights = [name for name in base.tensors if name in self._alias]
        self.must_move = 1
        # Only the base's hash says that a tensor the training did not write (a vision tower) is not a missing layer.
        wanted = set(self._files) | (set() if (folder / BASE_FILE).is_file() else set(base.tensors))
        for name in sorted(wanted):
            alias, info = self._alias.get(name), base.tensors.get(name)
            trained = list(self._files[alias].tensors[alias].shape) if alias else None
            if trained is None or info is None or trained != list(info.shape):
                raise UserError(
                    f"was trained on another base: {name} has the shape {trained}, "
                    f"the base {None if info is None else list(info.shape)}.",
                    where=str(folder),
                )

    def blocks(self, base: ModelFolder, name: str) -> Iterator[tuple[Array, Array]]:
        alias = self._alias[name]
        file = self._files[alias]
        for old, new in zip(base.blocks(name), file.blocks(alias), strict=True):
            yield to_float32(old, base.tensors[name].dtype), to_float32(new, file.tensors[alias].dtype)


def _tied_heads(trained: Collection[str], base: ModelFolder) -> dict[str, str]:
    """Output head in the base's files → trained embedding: a tied head that is stored twice must move with it.

    Training writes every tensor that trains, so a head it did not write was the embedding.
    """
    heads = [name for name in _HEADS if name in base.tensors and name not in trained]
    embeddings = [name for name in trained if name.endswith(_EMBEDDINGS)]
    shapes = {name: base.tensors[name].shape for name in embeddings if name in base.tensors}
    found = {head: [e for e in shapes if shapes[e] == base.tensors[head].shape] for head in heads}
    for head, fitting in found.items():
        if len(fitting) != 1:
            raise UserError(
                f"was not trained with its output head, and which embedding {head} is a copy of cannot be told.",
                where=str(base.folder),
            )
    return {head: fitting[0] for head, fitting in found.items()}


class MergedWeights:
    """The tensors of base + tuned weights, as if they were a model folder; nothing is written.

    `tuned` holds an adapter in PEFT's format or fully trained weights; `dtype` is "base", "float32", "bfloat16" or
    "float16". `quantised` is the base as QLoRA saw it: its dequantised weights then stand for the base's, and the
    change is counted from them. UserError if the adapter is of another base.
    """

    def __init__(
        self,
        base_folder: Path,
        tuned: Path,
        *,
        dtype: str,
        base_sha256: str,
        quantised: Dequantised | None = None,
    ) -> None:
        self.base = ModelFolder(base_folder)
        self.folder, self.config = self.base.folder, self.base.config
        self.wanted = None if dtype == "base" else BY_TORCH_NAME[dtype]
        self.change = Change()
        self._tuned, self._dtype_key = tuned, dtype
        self.words = f"merge.dtype: {dtype}" + (", onto the dequantised base" if quantised else "")
        """How it is merged, for the record."""
        self._source: _Tuned
        if (tuned / _ADAPTER_CONFIG).is_file():
            self._source = _WithAdapter(Adapter(tuned, self.base, base_sha256), quantised)
            _check_names(self._source, self.base)
        else:
            self._source = _Trained(tuned, self.base, base_sha256)
        self._changed = set(self._source.weights)

    @property
    def files(self) -> list[Path]:
        """What the tuned weights are read from."""
        config = self._tuned / _ADAPTER_CONFIG
        return [*weight_files(self._tuned), *([config] if config.is_file() else [])]

    @property
    def dtype(self) -> str:
        """The number format of most of the numbers."""
        return self.wanted or self.base.dtype

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Number format and shape of every tensor, by checkpoint name."""
        tensors = self.base.tensors.items()
        return {name: TensorInfo(self.wanted or info.dtype, info.shape, info.start) for name, info in tensors}

    def blocks(self, name: str) -> Iterator[Array]:
        """The tensor in blocks of whole rows, in its number format; what it changed is counted meanwhile."""
        info = self.base.tensors[name]
        number_format = self.wanted or info.dtype
        if name not in self._changed:
            for block in self.base.blocks(name):
                yield convert(block, info.dtype, number_format, name)
            return
        moved = False
        for old, new in self._source.blocks(self.base, name):
            written = from_float32(new, number_format, name)
            moved = _measure(from_float32(old, number_format, name), written, number_format, self.change) or moved
            yield written
        self.change.tensors += moved

    def check(self) -> None:
        """After every tensor: UserError if rounding left any adapted weight as it was, or if one is not finite."""
        if not math.isfinite(self.change.norm):
            raise UserError(
                "has weights that are not finite.", where=str(self._tuned), next_step="Train with a lower rate."
            )
        if self.change.tensors < self._source.must_move:
            raise UserError(
                f"changes {self.change.tensors} of {self._source.must_move} weights once rounded "
                f"(merge.dtype: {self._dtype_key}).",
                where=str(self._tuned),
                next_step="Train longer or with a higher learning_rate, or set merge.dtype: float32.",
            )

    def state(self) -> dict[str, Any]:
        """What was counted so far, for `restore` in a later process."""
        return asdict(self.change)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.change = Change(**state)


def _check_names(source: _Tuned, base: ModelFolder) -> None:
    unknown = [name for name in source.weights if name not in base.tensors]
    if unknown:
        raise UserError(
            f"the loaded model calls a weight {unknown[0]}, its files do not.",
            where=str(base.folder),
            next_step="Set merge.base: original, which needs no such names.",
        )


def _measure(old: Array, new: Array, number_format: str, change: Change) -> bool:
    difference = to_float32(new, number_format) - to_float32(old, number_format)
    largest = float(np.abs(difference).max(initial=0.0))
    change.max_abs = max(change.max_abs, largest)
    change.sum_of_squares += float(np.square(difference, dtype=np.float64).sum())
    return largest > 0
