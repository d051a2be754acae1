"""What a container may take of its machine: its share of the cores' time, and memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# cgroup v1 says "no limit" as the largest number of pages.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Quota:
    """Limits of this container: cores (None: none) and bytes (None: none), and bytes it may still take (None)."""

    cores: float | None
    memory: int | None
    left: int | None = None


def usable_cores() -> int:
    """Cores for the threads or workers of this process, at least 1: those it may run on, no more than its share.

    A container that is rented by the core often sees all cores of its host and gets a share of their time. Threads
    beyond it stand still in turn, and all the others wait for them.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = read_quota().cores
    return seen if share is None else max(1, min(seen, int(share)))


def quota_of(files: Mapping[str, str]) -> Quota:
    """Limits from the files of a cgroup folder, v2 or v1, by name."""
    cores = _cores(files)
    limit = _number(files.get("memory.max")) or _number(files.get("memory.limit_in_bytes"))
    if limit is None or limit >= _NO_LIMIT:
        return Quota(cores, None)
    used = _number(files.get("memory.current")) or _number(files.get("memory.usage_in_bytes")) or 0
    # File pages count as taken but go when memory is needed.
    cached = re.search(r"^(?:total_)?inactive_file (\d+)$", files.get("memory.stat", ""), re.MULTILINE)
    return Quota(cores, limit, max(0, limit - used + (int(cached[1]) if cached else 0)))


def _cores(files: Mapping[str, str]) -> float | None:
    both = files.get("cpu.max", "").split()
    if not both:
        both = [files.get("cpu.cfs_quota_us", "").strip(), files.get("cpu.cfs_period_us", "").strip()]
    quota, period = _number(both[0]), _number(both[-1])
    return quota / period if quota and period and quota > 0 else None


def _number(text: str | None) -> int | None:
    """None for "max", "-1" and what is not there."""
    return int(text) if text is not None and text.strip().isdigit() else None


def read_quota(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> Quota:
    """The tightest limits on the way from this process's cgroup to the root, v2 or v1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return Quota(None, None)
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount = root / controller
            here = mount / path.strip("/")
            for folder in (here, *here.parents):
                if folder != root.parent and (folder == mount or mount in folder.parents):
                    found.append(quota_of(_files(folder)))
    return _tightest(found)


def _files(folder: Path) -> dict[str, str]:
    names = (
        "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.max", "memory.current", "memory.limit_in_bytes",
        "memory.usage_in_bytes", "memory.stat",
    )  # fmt: skip
    found = {}
    for name in names:
        try:
            found[name] = (folder / name).read_text()
        except OSError:
            continue
    return found


def _tightest(quotas: list[Quota]) -> Quota:
    return Quota(
        min((quota.cores for quota in quotas if quota.cores is not None), default=None),
        min((quota.memory for quota in quotas if quota.memory is not None), default=None),
        min((quota.left for quota in quotas if quota.left is not None), default=None),
    )
