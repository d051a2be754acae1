"""Findings about the machine: Python, processor, cores, load, memory and disks, containers' limits included."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from ssd_lite.container import Quota, read_quota
from ssd_lite.engines.host_memory import available_bytes
from ssd_lite.stages.checkup.finding import GIB, Finding, gib

LEAST_PYTHON = (3, 11)
# What `ssd-lite run quickstart` takes: memory as measured (README), disk as `ssd-lite plan quickstart` says.
QUICKSTART_MEMORY, QUICKSTART_DISK = int(3.7 * GIB), 2 * GIB
TMP_DISK = GIB // 2
_NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


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
