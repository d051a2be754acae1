"""Weights in 16 and 32 bits as numpy arrays; numpy has no bfloat16, so its bits are carried as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.errors import UserError

Array = NDArray[Any]

# Safetensors' name → (bytes a number, the numpy type that carries its bits).
CARRIERS: dict[str, tuple[int, str]] = {"F32": (4, "<f4"), "F16": (2, "<f2"), "BF16": (2, "<u2")}
BY_TORCH_NAME = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TORCH_NAMES = {short: name for name, short in BY_TORCH_NAME.items()}


def to_float32(block: Array, dtype: str) -> NDArray[np.float32]:
    """The numbers of a block of `dtype` ("F32", "F16", "BF16") in float32, exactly. Shape as given."""
    if dtype == "BF16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return block.astype(np.float32, copy=False)


def from_float32(block: NDArray[np.float32], dtype: str, where: str) -> Array:
    """Round float32 to `dtype`, ties to even. Raises UserError where a finite number does not fit into float16."""
    if dtype == "F32":
        return block
    if dtype == "BF16":
        bits = np.ascontiguousarray(block).view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        nan = np.isnan(block)
        if nan.any():
            rounded[nan] = 0x7FC0
        return rounded
    with np.errstate(over="ignore"):
        half = block.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(block).all():
        raise UserError(
            f"a weight of {where} is too large for float16.", next_step="Use bfloat16 (bf16) or float32 (f32)."
        )
    return half


def convert(block: Array, dtype: str, wanted: str, where: str) -> Array:
    """A block of `dtype` in the number format `wanted`; the bits as they are where both are the same."""
    return block if dtype == wanted else from_float32(to_float32(block, dtype), wanted, where)
