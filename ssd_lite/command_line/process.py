"""A command that works for long: lock of the run, signals as a wish to stop, a bug's traceback in the log."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssd_lite.atomic import disk_errors
from ssd_lite.errors import Stopped

if TYPE_CHECKING:
    from ssd_lite.run_folder import RunFolder


def prepare_process() -> None:
    """From here SIGTERM and Ctrl-C finish the work in hand; idle OpenMP threads sleep."""
    from ssd_lite.interrupt import listen

    let_threads_sleep()
    listen()


def let_threads_sleep() -> None:
    """Without a CUDA card idle OpenMP threads sleep, unless the user says otherwise.

    With a second core busy, llama.cpp at 2 threads made 11 tok/s with spinning threads and 53 with sleeping ones. Must
    come before the first heavy import.
    """
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def opened_run(folder: Path, stage: str) -> Iterator[RunFolder]:
    """The run at `folder`, locked for this process, or under the lock that `ssd-lite run` handed down.

    `stage` is what the heartbeat says this process works at.
    """
    from ssd_lite.run_folder import RunFolder
    from ssd_lite.run_lock import run_lock

    run = RunFolder.open(folder)
    prepare_process()
    # Under `accelerate launch` the first process of the machine holds the lock for all.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with run_lock(folder) if first else nullcontext(-1) as lock:
        _as_child(folder, lock)
        try:
            with _heartbeat(run, stage) if first else nullcontext(), disk_errors(folder):
                yield run
        except click.ClickException as error:
            run.log(error.format_message())
            raise
        except KeyboardInterrupt as error:
            raise Stopped("The stage was cut short by a second Ctrl-C.") from error
        except Exception:
            run.log(traceback.format_exc())
            raise


@contextmanager
def _heartbeat(run: RunFolder, stage: str) -> Iterator[None]:
    """Write the run's heartbeat while this process works, and how it ended."""
    from ssd_lite import heartbeat

    heart = heartbeat.begin(run.path, stage)
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        heart.end(heartbeat.STOPPED)
        raise
    except click.ClickException as error:
        heart.end(heartbeat.FAILED, error.format_message())
        raise
    except Exception as error:
        heart.end(heartbeat.FAILED, f"{type(error).__name__}: {error}")
        raise
    else:
        heart.end(heartbeat.STAGE_DONE)


def _as_child(folder: Path, lock: int) -> None:
    """Where the lock was handed down, go with the process that handed it."""
    from ssd_lite.run_lock import die_with_parent

    if os.environ.get("SSD_LITE_LOCK_FD") == str(lock):
        os.set_inheritable(lock, False)  # sandboxes and workers must not keep the run locked
        die_with_parent()
        _need_parent(folder)


def _need_parent(folder: Path) -> None:
    """Stop where `ssd-lite run` died while this process was still starting: the kernel's notice came too early."""
    from ssd_lite.stages.status import holder

    user = holder(folder)
    if user is None or user["pid"] != os.getppid():
        raise Stopped("The run that started this stage is gone.")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """A folder of results outside a run, made if need be, for this process alone."""
    from ssd_lite.run_folder import make_out_folder
    from ssd_lite.run_lock import run_lock

    make_out_folder(folder)
    prepare_process()
    with run_lock(folder) as lock, disk_errors(folder):
        _as_child(folder, lock)
        yield
