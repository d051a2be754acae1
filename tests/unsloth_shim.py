"""Repairs with which Unsloth's GPU path runs on a CPU under Triton's interpreter; for the proofs alone.

Kernels and autograd functions stay as they are. What is replaced are questions to a card (its properties, its number,
caches by its number) and names that the interpreter does not patch because they were bound at import. Written for
Unsloth 2026.10.7; a name that is missing raises, it is never skipped.
"""

from __future__ import annotations

import importlib
import os
import types
from typing import Any

VERSION = "2026.10.7"
ENVIRONMENT = {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "UNSLOTH_COMPILE_DISABLE": "1"}


class _OnlyDevice:
    """A list over devices where the only one has no number: every key is the same place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __len__(self) -> int:
        return 0  # devices with a number

    def __getitem__(self, key: Any) -> Any:
        return self._value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._value = value


class _NoDevices(int):
    """A number of devices that makes `[value] * number` a `_OnlyDevice`."""

    def __rmul__(self, values: Any) -> Any:
        return _OnlyDevice(values[0])


def before_import() -> None:
    """What must be set before Unsloth and Triton are imported."""
    os.environ.update(ENVIRONMENT)


def repair() -> None:
    """After Unsloth was imported and before a model is built. Raises AttributeError for a name that is not there."""
    import torch
    import triton.language as tl
    import unsloth

    if unsloth.__version__ != VERSION:
        raise RuntimeError(f"written for Unsloth {VERSION}, not {unsloth.__version__}")
    card = types.SimpleNamespace(
        name="none", total_memory=24 << 30, major=8, minor=0, multi_processor_count=1, warp_size=32
    )
    _set(torch.cuda, "get_device_properties", lambda *_: card)
    _set(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    _set(torch.cuda, "current_device", lambda: None)
    llama = importlib.import_module("unsloth.models.llama")
    _set(llama, "DEVICE_COUNT", _NoDevices(0))
    _set(llama, "get_current_device", lambda: "cpu")
    _set(importlib.import_module("unsloth.models.loader"), "ALLOW_BITSANDBYTES", True)
    for name in ("utils", "cross_entropy_loss"):
        _set(importlib.import_module(f"unsloth.kernels.{name}"), "triton_cast", tl.cast)
    for name in ("rope_embedding", "cross_entropy_loss"):
        _set(importlib.import_module(f"unsloth.kernels.{name}"), "_eviction_hints_ok", lambda device: False)
    _set(importlib.import_module("unsloth.kernels.nf4"), "_capability", lambda index: (8, 0))
    _set(importlib.import_module("unsloth.kernels.utils"), "_can_use_scratch", lambda device: False)


def _set(module: Any, name: str, value: Any) -> None:
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name} any more")
    setattr(module, name, value)
