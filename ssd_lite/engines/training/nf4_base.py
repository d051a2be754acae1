"""The base as QLoRA trained on it: quantised to NF4 by the same loader, given back weight by weight in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd_lite.engines.training.mergeable import checkpoint_name
from ssd_lite.engines.training.peft_model import load_base


class Nf4Base:
    """The weights of `folder` that bitsandbytes quantises, as its forward pass sees them.

    They come out of the loaded model and not out of a second quantiser, so they are those the adapter was trained on:
    same modules, same rounding, same device.
    """

    def __init__(self, folder: Path) -> None:
        from bitsandbytes.nn import Linear4bit

        network = load_base(folder, "qlora")
        modules = {name: module for name, module in network.named_modules() if isinstance(module, Linear4bit)}
        self._modules = {}
        for name, module in modules.items():
            shape = (module.out_features, module.in_features)
            self._modules[checkpoint_name(network, f"{name}.weight", shape) or f"{name}.weight"] = module

    @property
    def weights(self) -> list[str]:
        """Checkpoint names of the quantised weights."""
        return list(self._modules)

    def array(self, weight: str) -> NDArray[np.float32]:
        """One of `weights` dequantised [out, in], in float32; on a card first rounded to bfloat16, as training does."""
        from bitsandbytes.functional import dequantize_4bit

        stored = self._modules[weight].weight
        values: NDArray[np.float32] = dequantize_4bit(stored.data, stored.quant_state).float().cpu().numpy()
        return values
