"""Memory: how much a model may take here, a container's limit included, or on the card; and what this process took."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from ssd_lite.container import read_quota


def available_bytes() -> int:
    """Memory of the host that can be had without swapping, in bytes; never more than this container may still take."""
    left = read_quota().left
    return max(0, min([_available_on_host(), *([] if left is None else [left])]))


def _available_on_host() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # no Linux: half of what there is


def card_bytes() -> int | None:
    """Free memory of the first CUDA card in bytes, None where there is none."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def peak_rss_bytes() -> int:
    """Most memory this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
