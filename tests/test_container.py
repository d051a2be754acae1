"""Limits of a container, from files as kernels write them, and the cores that count under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssd_lite import container
from ssd_lite.container import Quota, quota_of, read_quota, usable_cores

GIB = 2**30


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, Quota(None, None)),
        (
            {"cpu.max": "250000 100000\n", "memory.max": "8589934592\n", "memory.current": "6442450944\n",
             "memory.stat": "anon 1\nfile 2\ninactive_file 1073741824\nactive_file 3\n"},
            Quota(2.5, 8 * GIB, 3 * GIB),
        ),
        (
            {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n", "memory.limit_in_bytes": "4294967296\n",
             "memory.usage_in_bytes": "1073741824\n", "memory.stat": "cache 5\ntotal_inactive_file 536870912\n"},
            Quota(1.5, 4 * GIB, 7 * GIB // 2),
        ),
        (
            {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n",
             "memory.limit_in_bytes": "9223372036854771712\n"},
            Quota(None, None),
        ),
        ({}, Quota(None, None)),
    ],
)  # fmt: skip
def test_limits_of_a_cgroup(files: dict[str, str], quota: Quota) -> None:
    assert quota_of(files) == quota


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(root / "slice", cpu__max="100000 100000", memory__max="max")
    write(root / "slice" / "job", cpu__max="400000 100000", memory__max=str(2 * GIB), memory__current="0")
    write(tmp_path, cpu__max="1000 100000")  # above the root: not ours
    own.write_text("0::/slice/job\n")
    assert read_quota(root, own) == Quota(1.0, 2 * GIB, 2 * GIB)


def test_version_one_and_a_path_that_the_container_does_not_have(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(root / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    write(root / "memory", memory__limit_in_bytes=str(GIB), memory__usage_in_bytes="0")
    own.write_text("9:name=systemd:/\n4:memory:/docker/4711\n2:cpu,cpuacct:/docker/4711\n0::/\n")
    assert read_quota(root, own) == Quota(0.5, GIB, GIB)
    assert read_quota(root, tmp_path / "not there") == Quota(None, None)


@pytest.mark.parametrize(("share", "count"), [(None, 64), (8.0, 8), (7.5, 7), (1.5, 1), (0.5, 1), (99.0, 64)], ids=str)
def test_a_share_of_time_counts_as_cores(share: float | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(container, "read_quota", lambda: Quota(share, None))
    assert usable_cores() == count
