"""Files and folders appear whole or not at all, after exceptions and kills too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssd_lite.atomic import DONE_FILE, is_whole, leftovers, new_folder, sha256_of_file, write_json, write_text

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
    with pytest.raises(OSError, match="power"):
        write_text(path, "half")
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}


def test_not_a_number_does_not_get_into_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert not path.exists()


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
