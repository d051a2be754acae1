"""Files and folders appear whole or not at all, after exceptions and kills too."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssd_lite.atomic import (
    DONE_FILE,
    disk_errors,
    is_whole,
    leftovers,
    new_folder,
    replace_when_whole,
    sha256_of_file,
    write_json,
    write_text,
)
from ssd_lite.errors import UserError

KILLED = """
import os, signal, sys
from pathlib import Path
from ssd_lite.atomic import new_folder, write_text
with new_folder(Path(sys.argv[1])) as part:
    (part / "weights.bin").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def fill(target: Path) -> None:
    with new_folder(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a.bin").write_bytes(b"12345")
        (part / "empty").write_bytes(b"")


def test_a_folder_appears_whole_with_the_sizes_of_its_files(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with new_folder(target) as part:
        (part / "a.bin").write_bytes(b"12345")
        assert not target.exists()
        assert part.parent == tmp_path
    assert json.loads((target / DONE_FILE).read_text()) == {"sizes": {"a.bin": 5}}
    assert is_whole(target)
    assert leftovers(tmp_path) == []


def test_after_an_exception_there_is_no_target(tmp_path: Path) -> None:
    target = tmp_path / "adapter"

    def fail_half_way() -> None:
        with new_folder(target) as part:
            (part / "a.bin").write_bytes(b"12345")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert not target.exists()
    assert not is_whole(target)
    assert [path.name.startswith(".adapter.part-") for path in leftovers(tmp_path)] == [True]


def test_after_a_kill_there_is_no_target_and_the_work_can_be_done_again(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(leftovers(tmp_path)) == 1
    fill(target)
    assert is_whole(target)
    assert len(leftovers(tmp_path)) == 1


def test_an_existing_target_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    fill(target)
    with pytest.raises(OSError), new_folder(target) as part:
        (part / "other").write_text("new")
    assert is_whole(target)
    assert not (target / "other").exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "longer", "no marker", "marker is no JSON"])
def test_a_damaged_folder_is_not_whole(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "adapter"
    fill(target)
    file = target / "sub" / "a.bin"
    match damage:
        case "cut":
            file.write_bytes(b"1234")
        case "gone":
            file.unlink()
        case "longer":
            file.write_bytes(b"123456")
        case "no marker":
            (target / DONE_FILE).unlink()
        case "marker is no JSON":
            (target / DONE_FILE).write_text('{"sizes"')
    assert not is_whole(target)


def test_a_folder_nobody_published_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path)
    assert not is_whole(tmp_path / "none")


def test_a_file_is_replaced_in_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"é": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}

    def no_rename(source: object, target: object) -> None:
        raise OSError("power is gone")

    monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be written: power is gone"):
        write_text(path, "half")
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}
    assert leftovers(tmp_path) == []


@contextmanager
def no_file_above(limit: int) -> Iterator[None]:
    """A disk that takes so many bytes a file: the kernel refuses more with EFBIG, as a full one does with ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_keeps_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"stages": {}})
    with pytest.raises(UserError, match="File too large") as caught, no_file_above(100):
        write_json(path, {"stages": "x" * 200})
    assert caught.value.where == str(path)
    assert json.loads(path.read_text()) == {"stages": {}}
    assert leftovers(tmp_path) == []


def fill_until_the_disk_is_full(target: Path) -> None:
    with new_folder(target) as part, no_file_above(100):
        (part / "weights.bin").write_bytes(b"x" * 200)


def write_until_the_disk_is_full(target: Path) -> None:
    with replace_when_whole(target) as part, no_file_above(100):
        part.write_bytes(b"x" * 200)


@pytest.mark.parametrize("write", [fill_until_the_disk_is_full, write_until_the_disk_is_full])
def test_a_full_disk_under_other_writers_is_named_too(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(UserError, match="cannot be written: File too large") as caught:
        write(tmp_path / "merged")
    assert str(tmp_path / "merged") in caught.value.where
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_says_what_to_do_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Make room on the disk"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "none").read_bytes()
    with pytest.raises(UserError, match="cannot be written: Not a directory"), new_folder(Path(__file__) / "x"):
        pass


def test_not_a_number_does_not_get_into_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert not path.exists()


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
