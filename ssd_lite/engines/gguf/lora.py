"""A LoRA adapter as a GGUF that llama.cpp adds to a base GGUF while it answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_lite.atomic import fsync_folder
from ssd_lite.engines.gguf.architecture import Architecture, architecture_of, unsupported
from ssd_lite.engines.gguf.header import gguf_writer
from ssd_lite.engines.gguf.names import to_gguf_name
from ssd_lite.engines.gguf.settings import check_convertible
from ssd_lite.engines.gguf.tensors import gguf_blocks
from ssd_lite.engines.weights.adapter import Adapter, Update
from ssd_lite.engines.weights.model_cache import check_space
from ssd_lite.engines.weights.model_folder import ModelFolder
from ssd_lite.engines.weights.number_formats import Array
from ssd_lite.errors import UserError


@dataclass(frozen=True)
class LoraFile:
    """What was written: adapted weights, numbers in A and B together, and alpha (scale · rank)."""

    weights: int
    numbers: int
    alpha: float


def write_lora_gguf(folder: Path, base: Path, base_sha256: str, out: Path, *, name: str, base_name: str) -> LoraFile:
    """Write the PEFT adapter `folder` of the model folder `base` to `out`, float32, whole or not at all.

    Per weight W two tensors: W.lora_a [rank, in] and W.lora_b [out, rank]; llama.cpp adds alpha / rank · B A. One file
    has one alpha, so where ranks, alphas or rsLoRA make scales that differ, B takes up the rest. Raises UserError for
    an adapter that is not merged here either, for another base, and for a full disk.
    """
    model = ModelFolder(base)
    architecture = architecture_of(model.config.get("architectures") or [], str(base))
    check_convertible(architecture, model.config, str(base))
    adapter = Adapter(folder, model, base_sha256)
    targets = {weight: _target(weight, architecture, base) for weight in adapter.weights}
    first = adapter.update(adapter.weights[0])
    alpha = first.scale * len(first.a) or float(len(first.a))
    shapes = {weight: _shapes(adapter.update(weight)) for weight in targets}
    numbers = sum(int(np.prod(shape)) for pair in shapes.values() for shape in pair)
    check_space(out.parent, 4 * numbers, "the adapter's GGUF")
    writer = gguf_writer(architecture.name)
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base_name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for weight, target in targets.items():
        for side, shape in zip("ab", shapes[weight], strict=True):
            dtype = np.dtype(np.float32)
            writer.add_tensor_info(f"{target}.lora_{side}", shape, dtype, 4 * int(np.prod(shape)))
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        _write_file(writer, part, adapter, architecture, model, alpha)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"cannot be written: {error.strerror}.", where=str(out), next_step="Make room and export again."
        ) from error
    os.replace(part, out)
    fsync_folder(out.parent)
    return LoraFile(len(targets), numbers, alpha)


def _target(weight: str, architecture: Architecture, base: Path) -> str:
    target = to_gguf_name(weight, architecture)
    if target is None or target == "token_embd.weight":
        raise unsupported(f"an adapter of {weight}", str(base))
    return target


def _shapes(update: Update) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return update.a.shape, update.b.shape


def _write_file(
    writer: Any, part: Path, adapter: Adapter, architecture: Architecture, model: ModelFolder, alpha: float
) -> None:
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight in adapter.weights:
        update = adapter.update(weight)
        rest = np.float32(update.scale * len(update.a) / alpha)
        writer.write_tensor_data(np.ascontiguousarray(update.a))
        writer.write_tensor_data(_rows(update.b if rest == 1 else update.b * rest, weight, architecture, model))
    writer.flush()
    os.fsync(writer.fout[0].fileno())
    writer.close()


def _rows(b: Array, weight: str, architecture: Architecture, model: ModelFolder) -> Array:
    """B with its rows in the order of the base's GGUF: an output of q or k moves with its row of W."""
    return np.ascontiguousarray(next(gguf_blocks(architecture, model.config, weight, [b], "F32", "F32")))
