"""Which device there is, and what to say where its memory is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssd_lite.errors import UserError


def has_cuda() -> bool:
    """True if torch is installed and sees a CUDA card."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@contextmanager
def enough_card_memory(purpose: str, next_step: str, where: str = "train") -> Iterator[None]:
    """Turn a card's lack of memory into a UserError with the peak, in GiB, and what to lower."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        peak_gib = torch.cuda.max_memory_allocated() / 2**30
        raise UserError(
            f"the card has no memory left for {purpose} (peak {peak_gib:.1f} GiB).", where=where, next_step=next_step
        ) from error
