"""One writer per run: refused while held, free after any death, handed down to the stages of `ssd-lite run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssd_lite.errors import UserError
from ssd_lite.run_lock import environment_with_lock, run_lock

HOLD = """
import sys, time
from pathlib import Path
from ssd_lite.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""
TRY = """
import sys
from pathlib import Path
from ssd_lite.errors import UserError
from ssd_lite.run_lock import run_lock
try:
    with run_lock(Path(sys.argv[1])):
        print("taken")
except UserError as error:
    print("refused:", error)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
child.wait()
"""
CHILD = """
import os, time
from ssd_lite.run_lock import die_with_parent
die_with_parent()
print(os.getpid(), flush=True)
time.sleep(120)
"""


def python(code: str, *args: str, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=True, **options
    )
    return done.stdout.strip()


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError) as caught, run_lock(tmp_path):
        pass
    assert f'"pid": {holder.pid}' in caught.value.what
    assert caught.value.next_step
    assert python(TRY, str(tmp_path)).startswith("refused:")


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path):
        assert python(TRY, str(tmp_path)).startswith("refused:")
    assert python(TRY, str(tmp_path)) == "taken"


def test_the_lock_is_free_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert python(TRY, str(tmp_path)) == "taken"


def test_a_child_works_under_the_lock_it_inherits(tmp_path: Path) -> None:
    with run_lock(tmp_path) as lock:
        environment = environment_with_lock(lock)
        assert python(TRY, str(tmp_path), env=environment, pass_fds=(lock,)) == "taken"
        assert python(TRY, str(tmp_path), env=environment).startswith("refused:"), "the descriptor was not passed on"
        assert python(TRY, str(tmp_path)).startswith("refused:"), "the child's end must not free the lock"


def test_an_inherited_lock_of_another_run_is_no_lock(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    with run_lock(mine) as lock, run_lock(other):
        answer = python(TRY, str(other), env=environment_with_lock(lock), pass_fds=(lock,))
    assert answer.startswith("refused:")


@pytest.mark.parametrize("text", ["", "abc", "-1", "9999"])
def test_a_senseless_variable_is_ignored(tmp_path: Path, text: str) -> None:
    assert python(TRY, str(tmp_path), env={**os.environ, "SSD_LITE_LOCK_FD": text}) == "taken"


def test_children_do_not_hold_the_lock_by_accident(tmp_path: Path) -> None:
    with run_lock(tmp_path) as lock:
        assert not os.get_inheritable(lock)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_a_child_dies_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(child)
