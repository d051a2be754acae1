"""A model as its GGUF will have it: which tensors, in which order and shape, and their numbers block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ssd_lite.engines.gguf.architecture import architecture_of
from ssd_lite.engines.gguf.settings import check_convertible
from ssd_lite.engines.gguf.tensors import computed_tensors, gguf_blocks, gguf_names
from ssd_lite.engines.gguf.vocabulary import read_vocabulary
from ssd_lite.engines.weights.number_formats import Array
from ssd_lite.engines.weights.safetensors_file import TensorInfo
from ssd_lite.recipe_section import Decoding

# Our 16- and 32-bit types → (number format, llama.cpp's file type).
PLAIN_TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}


class Weights(Protocol):
    """Tensors by checkpoint name: a model folder, or a base with its adapter. `folder` has config and tokenizer."""

    @property
    def folder(self) -> Path: ...

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def tensors(self) -> dict[str, TensorInfo]: ...

    @property
    def dtype(self) -> str: ...

    def blocks(self, name: str) -> Iterator[Array]: ...


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file; `source` is its checkpoint name, None where it is computed. Shape rows first."""

    name: str
    source: str | None
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Vectors are float32 in every type of file."""
        return len(self.shape) == 1


class GgufModel:
    """What a GGUF of `weights` holds. UserError, naming llama.cpp's own converter, for what cannot be written."""

    def __init__(self, weights: Weights, name: str = "", decoding: Decoding | None = None) -> None:
        self.weights, self.config, where = weights, weights.config, str(weights.folder)
        self.name, self.decoding = name or weights.folder.name, decoding
        self.architecture = architecture_of(self.config.get("architectures") or [], where)
        check_convertible(self.architecture, self.config, where)
        self.vocabulary = read_vocabulary(weights.folder, self.config)
        self._stored: Mapping[str, TensorInfo] = weights.tensors
        self.computed = computed_tensors(self.architecture, self.config)
        names = gguf_names(self.architecture, self.config, self._stored, where)
        tensors = [GgufTensor(target, source, self._stored[source].shape) for target, source in names.items()]
        tensors += [GgufTensor(target, None, array.shape) for target, array in self.computed.items()]
        self.tensors = sorted(tensors, key=lambda tensor: _place(tensor.name))
        self.exact = next(name for name, (dtype, _) in PLAIN_TYPES.items() if dtype == weights.dtype)
        """The plain type that most numbers have already: quantised files are made from it."""

    @property
    def count(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.count for tensor in self.tensors)

    def stored(self, tensor: GgufTensor) -> str:
        """The number format of `blocks`: as in the checkpoint, of vectors float32."""
        return "F32" if tensor.is_vector or tensor.source is None else self._stored[tensor.source].dtype

    def blocks(self, tensor: GgufTensor) -> Iterator[Array]:
        """The tensor's numbers as the GGUF has them, in blocks of whole rows."""
        if tensor.source is None:
            yield self.computed[tensor.name]
            return
        blocks, stored = self.weights.blocks(tensor.source), self._stored[tensor.source].dtype
        yield from gguf_blocks(self.architecture, self.config, tensor.source, blocks, stored, self.stored(tensor))


def _place(name: str) -> tuple[int, str]:
    """Order of llama.cpp's quantiser: what is in no layer first, then layer by layer, by name."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1, name)
