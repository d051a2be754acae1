"""Which device there is."""

from __future__ import annotations


def has_cuda() -> bool:
    """True if torch is installed and sees a CUDA card."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
