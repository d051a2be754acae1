"""Did the weights move, and how far: exact for adapters, from a fixed sample of elements for full fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SAMPLED_ELEMENTS = 65_536


class WeightChange:
    """Remembers where training starts. Make it before any step (and before a checkpoint is loaded)."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._adapted = hasattr(network, "peft_config")
        self._start: dict[str, Tensor] = {}
        if not self._adapted:
            self._start = {name: _sample(tensor).clone() for name, tensor in _trainable(network)}

    @torch.no_grad()
    def norm(self) -> float:
        """Frobenius norm of the change of all weights; 0.0 exactly if nothing moved.

        Adapters: `|s B A|^2 = s^2 tr((B^T B)(A A^T))`, r x r products only. Full: each tensor's sample of about
        SAMPLED_ELEMENTS evenly spaced elements, scaled up to its size.
        """
        if self._adapted:
            return math.sqrt(sum(_adapter_squares(self._network)))
        total = 0.0
        for name, tensor in _trainable(self._network):
            now = _sample(tensor)
            total += float((now - self._start[name]).double().square().sum()) * tensor.numel() / now.numel()
        return math.sqrt(total)


def _trainable(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in network.named_parameters() if tensor.requires_grad]


def _sample(tensor: Tensor) -> Tensor:
    stride = max(1, tensor.numel() // SAMPLED_ELEMENTS) | 1  # odd, so that it does not walk down one column
    return tensor.detach().flatten()[::stride]


def _adapter_squares(network: nn.Module) -> list[float]:
    squares: list[float] = []
    module: Any  # a PEFT layer, whose attributes torch does not know
    for module in network.modules():
        if hasattr(module, "lora_A") and hasattr(module, "scaling"):
            for name, down in module.lora_A.items():
                a, b = down.weight.double(), module.lora_B[name].weight.double()
                squares.append(module.scaling[name] ** 2 * float(((b.T @ b) * (a @ a.T)).sum()))
    return squares
