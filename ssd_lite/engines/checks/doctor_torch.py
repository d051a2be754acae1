"""What `ssd-lite doctor` asks PyTorch in a process of its own: build, cards, and whether a card computes."""

from __future__ import annotations

import warnings
from typing import Any

# float16 has 11 bits: products of numbers near 1 summed over 64 terms are right within about 64 * 2**-11.
_TOLERANCE = 0.05


def torch_facts() -> dict[str, Any]:
    """Version, CUDA of the build (None: built without), the cards with memory in bytes, and what CUDA said instead.

    `architectures` are those the wheel has code for (`sm_90`, `compute_120`), empty without a card.
    """
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "available": available,
        "said": str(said[-1].message).splitlines()[0] if said else "",
        "architectures": list(torch.cuda.get_arch_list()) if available else [],
        "cards": [_card(index) for index in range(torch.cuda.device_count())] if available else [],
    }


def _card(index: int) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"index": index, "error": ""}
    try:
        told = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            facts |= {
                "name": told.name,
                "capability": [told.major, told.minor],
                "total": total,
                "free": free,
                "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
                "error": _product_error(),
            }
    except RuntimeError as error:
        facts["error"] = f"{error}".splitlines()[0]
    return facts


def _product_error() -> str:
    """Multiply two matrices on the current card and on the CPU: what is wrong, or ""."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 64, generator=generator) for _ in range(2))
    exact = left @ right
    found = (left.cuda().half() @ right.cuda().half()).float().cpu()
    off = float((found - exact).norm() / exact.norm())
    return "" if off < _TOLERANCE else f"a product on the card is off by {off:.2g}"
