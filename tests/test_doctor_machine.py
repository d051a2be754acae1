"""Limits of containers, disks, memory and cores, from files as kernels write them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ssd_lite.container import Quota
from ssd_lite.stages.checkup.finding import GIB
from ssd_lite.stages.checkup.machine import (
    cores_finding,
    cpu_finding,
    disk_finding,
    machine_findings,
    memory_finding,
)

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu vme avx2 avx512f {flag}\nbugs\t\t: sysret_ss_attrs\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes i8mm bf16 dgh\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (X86.format(flag="avx512_bf16"), "AMD EPYC, native bfloat16 (avx512_bf16)"),
        (X86.format(flag="amx_bf16 amx_tile"), "AMD EPYC, native bfloat16 (amx_bf16)"),
        (X86.format(flag="avx512_vnni"), "AMD EPYC, no native bfloat16"),
        (ARM, "native bfloat16 (bf16)"),
        ("", "no native bfloat16"),
    ],
)
def test_bfloat16_of_the_processor(text: str, words: str) -> None:
    finding = cpu_finding(text)
    assert words in finding.found
    assert finding.status == "ok"  # training on a CPU is in float32 anyway


def test_cores() -> None:
    assert cores_finding(8, 8, Quota(None, None), 1.0).status == "ok"
    busy = cores_finding(8, 2, Quota(None, None), 3.0)
    assert (busy.status, busy.found) == ("warn", "2 usable of 8, load 3.0; others are at work")
    quota = cores_finding(64, 64, Quota(2.5, None), 1.0)
    assert (quota.status, quota.advice) == ("warn", "ssd-lite run … --set threads=2")
    assert cores_finding(64, 64, Quota(0.5, None), 0.1).advice.endswith("threads=1")


def test_memory() -> None:
    host = memory_finding(24 * GIB, 20 * GIB, Quota(None, None))
    assert (host.status, host.found) == ("ok", "20.0 GiB free of 24.0 GiB")
    inside = memory_finding(64 * GIB, 60 * GIB, Quota(None, 8 * GIB, 3 * GIB))
    assert inside.status == "warn"
    assert inside.found.startswith("3.0 GiB free of 8.0 GiB (the container's limit; the host has 64.0 GiB)")
    # A limit above what there is limits nothing.
    assert "limit" not in memory_finding(8 * GIB, 6 * GIB, Quota(None, 16 * GIB, 16 * GIB)).found


def test_disk(tmp_path: Path) -> None:
    there = disk_finding("disk", tmp_path / "not" / "yet", 1, "move it")
    assert there.status == "ok"
    assert there.found.endswith(str(tmp_path / "not" / "yet"))
    assert disk_finding("disk", tmp_path, 2**62, "move it").status == "warn"
    (tmp_path / "file").write_text("")
    assert disk_finding("disk", tmp_path / "file", 1, "move it").status == "fail"
    if os.getuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert disk_finding("disk", tmp_path / "closed", 1, "move it").status == "fail"


def test_this_machine_is_read() -> None:
    found = {one.name: one for one in machine_findings()}
    assert list(found) == ["python", "cpu", "cores", "memory"]
    assert found["python"].status == ("ok" if sys.platform == "linux" else "warn")
    assert f"usable of {os.cpu_count()}" in found["cores"].found
