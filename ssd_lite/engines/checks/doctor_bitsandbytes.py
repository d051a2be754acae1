"""bitsandbytes at work, for `ssd-lite doctor`: NF4 forward and backward and an 8-bit optimiser, as QLoRA uses them."""

from __future__ import annotations

import warnings
from typing import Any

# NF4 stores random normal weights within 9 to 10 per cent; far from it means other bytes than were written.
_STORED = (0.05, 0.15)
# Relative differences to the product with the dequantised weights: rounding in bfloat16, or in float32.
_ON_CARD, _ON_CPU = 0.03, 1e-4
_WIDTH = 256


def bitsandbytes_facts() -> dict[str, Any]:
    """Where it ran ("cuda" or "cpu") and what was off: `error` is "" where all is as it should be."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # What the libraries think of this machine is not asked here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"device": device, "error": nf4_error(device) or optimiser_error(device)}


def nf4_error(device: str) -> str:
    """Quantise a layer to NF4 with double quantisation, multiply forward and backward: what is wrong, or ""."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    number_format = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_WIDTH, _WIDTH, generator=generator)
    layer = Linear4bit(_WIDTH, _WIDTH, bias=False, compute_dtype=number_format, quant_type="nf4")
    layer.load_state_dict({"weight": weight})
    # The repacked form of AVX512-BF16 has no right backward pass (engines/training/peft_model.py turns it off).
    layer.support_avx512bf16_for_cpu = False
    layer = layer.to(device)
    stored = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    off = _relative(stored.cpu(), weight)
    if not _STORED[0] < off < _STORED[1]:
        return f"NF4 weights are off by {off:.2g}"
    given = torch.randn(8, _WIDTH, generator=generator).to(device, number_format).requires_grad_()
    gradient = torch.randn(8, _WIDTH, generator=generator).to(device, number_format)
    answer: Any = layer(given)
    (answer * gradient).sum().backward()
    assert given.grad is not None
    limit = _ON_CARD if device == "cuda" else _ON_CPU
    for name, found, exact in (
        ("forward", answer, given.float() @ stored.T),
        ("backward", given.grad, gradient.float() @ stored),
    ):
        off = _relative(found.float(), exact)
        if not off < limit:
            return f"the {name} pass through NF4 is off by {off:.2g}"
    return ""


def optimiser_error(device: str) -> str:
    """Twenty steps of the paged 8-bit AdamW down a bowl: what is wrong, or ""."""
    import torch
    from bitsandbytes.optim import PagedAdamW8bit

    # Fewer than 4,096 numbers would be kept in 32 bits.
    place: Any = torch.nn.Parameter(torch.ones(128, 128, device=device))
    optimiser = PagedAdamW8bit([place], lr=0.05, weight_decay=0.0)
    for _ in range(20):
        optimiser.zero_grad()
        place.square().mean().backward()
        optimiser.step()
    height = float(place.detach().square().mean())
    # AdamW moves by the rate each step, so that 20 steps of 0.05 end near the bottom; 1.0 is where it began.
    return "" if height < 0.5 else f"the 8-bit optimiser came from 1.0 to {height:.2g} only"


def _relative(found: Any, exact: Any) -> float:
    found, exact = found.detach(), exact.detach()
    return float((found - exact).norm() / exact.norm())
