"""Findings about the machine: Python, processor, cores, load, memory and disks, containers' limits included."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_lite.engines.host_memory import available_bytes
from ssd_lite.stages.checkup.finding import GIB, Finding, gib

LEAST_PYTHON = (3, 11)
# What `ssd-lite run quickstart` takes: memory as measured (README), disk as `ssd-lite plan quickstart` says.
QUICKSTART_MEMORY, QUICKSTART_DISK = int(3.7 * GIB), 2 * GIB
TMP_DISK = GIB // 2
_CGROUP = Path("/sys/fs/cgroup")
# cgroup v1 says "no limit" as the largest number of pages.
_NO_LIMIT = 1 << 60
_NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class Quota:
    """Limits of this container: cores (None: none) and bytes (None: none), and bytes it may still take (None)."""

    cores: float | None
    memory: int | None
    left: int | None = None


def python_finding() -> Finding:
    """Python and platform."""
    said = f"{platform.python_version()} in {sys.prefix}, {platform.system()} {platform.release()} {platform.machine()}"
    if sys.version_info < LEAST_PYTHON:
        return Finding("python", "fail", f"{said}; 3.11 is the least", "python3.12 -m venv .venv")
    if platform.system() != "Linux":
        why = f"{said}; only Linux was tried, and grading needs it"
        return Finding("python", "warn", why, "docker run -it python:3.12  # work in a Linux container")
    return Finding("python", "ok", said)


def cpu_finding(cpuinfo: str) -> Finding:
    """The processor, and whether it counts in bfloat16; from /proc/cpuinfo."""
    name = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE)
    words = set(flags[1].split()) if flags else set()
    native = next((flag for flag in _NATIVE_BF16 if flag in words), None)
    bf16 = f"native bfloat16 ({native})" if native else "no native bfloat16"
    model = name[1].strip() if name else platform.machine()
    return Finding("cpu", "ok", f"{model}, {bf16}; training on it is in float32")


def cores_finding(present: int, allowed: int, quota: Quota, load: float) -> Finding:
    """Cores that may be used: of `present` ones `allowed` by affinity, further limited by a quota; load of a minute."""
    usable = allowed if quota.cores is None else min(float(allowed), quota.cores)
    said = f"{usable:g} usable of {present}, load {load:.1f}"
    if quota.cores is not None and quota.cores < allowed:
        # Thread counts are measured up to the affinity, which a quota does not show in.
        threads = max(1, int(quota.cores))
        return Finding("cores", "warn", f"{said}; the container has a quota", f"ssd-lite run … --set threads={threads}")
    if load > usable:
        return Finding("cores", "warn", f"{said}; others are at work", "ps -eo pid,pcpu,args --sort=-pcpu | head")
    return Finding("cores", "ok", said)


def memory_finding(total: int, available: int, quota: Quota) -> Finding:
    """Memory of the host or the container, and what is free of it, in bytes."""
    limited = quota.memory is not None and quota.memory < total
    whole = quota.memory if limited and quota.memory is not None else total
    free = min(available, whole if quota.left is None else quota.left)
    said = f"{gib(free)} free of {gib(whole)}"
    if limited:
        said += f" (the container's limit; the host has {gib(total)})"
    if free < QUICKSTART_MEMORY:
        why = f"{said}; `ssd-lite run quickstart` takes {gib(QUICKSTART_MEMORY)}"
        return Finding("memory", "warn", why, "ps -eo pid,rss,args --sort=-rss | head  # stop what holds it")
    return Finding("memory", "ok", said)


def disk_finding(name: str, folder: Path, least: int, advice: str) -> Finding:
    """Free bytes of the disk a folder is on or will be on; `advice` moves it. Fails where nothing can be written."""
    present = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{present} cannot be written", advice)
    free = shutil.disk_usage(present).free
    said = f"{gib(free)} free at {folder}"
    if free < least:
        return Finding(name, "warn", f"{said}; {gib(least)} are needed", advice)
    return Finding(name, "ok", said)


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


def machine_findings() -> list[Finding]:
    """Python, processor, cores and memory of this machine."""
    quota = read_quota()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    present = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        python_finding(),
        cpu_finding(cpuinfo),
        cores_finding(present, allowed, quota, os.getloadavg()[0]),
        memory_finding(total, available_bytes(), quota),
    ]
