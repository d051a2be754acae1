"""A whole run: one process a stage, in order, under one lock. A stage that is done starts no process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ssd_lite.errors import EXIT_STOPPED, EXIT_USER_ERROR, MissingLibraryError, Stopped, UserError
from ssd_lite.progress import duration
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder, Stage
from ssd_lite.run_lock import environment_with_lock, run_lock
from ssd_lite.stages.status import has_files

ORDER: tuple[Stage, ...] = ("sample", "curate", "train", "merge", "evaluate", "export", "report")
POLL_S = 0.05
# A terminal's Ctrl-C reaches the stage too. Passed on later, as SIGTERM, it is never the second SIGINT that cuts short.
PASS_ON_AFTER_S = 0.5
_STOPPED_CODES = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_LIBRARIES = (
    ("torch", "train"),
    ("transformers", "train"),
    ("peft", "train"),
    ("accelerate", "train"),
    ("gguf", "gguf"),
    ("llama_cpp", "gguf"),
)


class StageFailed(click.ClickException):
    """A stage ended by a bug or was killed; its traceback is above and in the log. Exit code 1."""


@dataclass(frozen=True)
class Ended:
    """How the process of a stage ended: exit code (negative: signal), wall seconds, peak resident memory in bytes.

    The kernel counts memory from before exec, so the peak is never below that of `ssd-lite run` itself (some 40 MB).
    """

    code: int
    seconds: float
    peak_rss_bytes: int
    stop_asked: bool


def prepare(path: Path, recipe: Recipe) -> RunFolder:
    """The run at `path`, new or gone on with. What a new run needs is looked for before anything is written."""
    if not (path / "recipe.yaml").is_file():
        check_machine(recipe)
    return RunFolder.create(path, recipe)


def check_machine(recipe: Recipe) -> None:
    """Raise UserError now for what a stage hours later would miss: a library, or a sandbox that holds here."""
    wanted = [*_LIBRARIES]
    if recipe.train.method == "qlora" or "8bit" in recipe.train.optim:
        wanted.append(("bitsandbytes", "qlora"))
    for library, extra in wanted:
        if importlib.util.find_spec(library) is None:
            raise MissingLibraryError(library, needed_for=f"the recipe {recipe.name!r}", extra=extra)
    from ssd_lite.grading.tiers import choose_tier

    choose_tier(recipe.evaluate.sandbox)[1].close()


def is_done(run: RunFolder, stage: Stage) -> bool:
    """True if the stage is done with these settings and its files are there."""
    return run.done(stage) is not None and has_files(run, stage)


def run_all(run: RunFolder, *, say: Callable[[str], None], stdout: int | None = None) -> dict[str, Any]:
    """Do the stages that are not done. `stdout` is a file descriptor for what the stages print, None for ours.

    Returns the stages' summaries, which of them ran now, and the table of the report. Raises Stopped after a signal,
    UserError where a stage found something to mend, StageFailed for a stage that broke.
    """
    ran: dict[str, float] = {}
    with run_lock(run.path) as lock, stop_signals() as asked:
        for number, stage in enumerate(ORDER, start=1):
            if is_done(run, stage):
                continue
            if asked:
                raise Stopped(f"The run stopped before the stage {stage!r}.")
            say(f"[{number}/{len(ORDER)}] {stage}")
            ended = run_stage(run, stage, lock, stdout, asked)
            _remember(run, stage, ended)
            _check(run, stage, ended)
            ran[stage] = round(ended.seconds, 1)
            say(f"[{number}/{len(ORDER)}] {stage}: {duration(ended.seconds)}\n")
    from ssd_lite.stages.report import table

    return {
        "run": str(run.path),
        "ran": ran,
        "stages": {stage: run.require(stage) for stage in ORDER},
        "processes": run.manifest().get("processes", {}),
        "report": str(run.report),
        "table": table(run),
    }


def run_stage(run: RunFolder, stage: Stage, lock: int, stdout: int | None, asked: Sequence[float]) -> Ended:
    """Run one stage in its own process under our lock; the stop signals that `asked` collects are passed on to it."""
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "ssd_lite", stage, str(run.path)],
        env=environment_with_lock(lock),
        pass_fds=(lock,),
        stdout=stdout,
    )
    passed_on = 0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if len(asked) > passed_on and time.monotonic() - asked[passed_on] > PASS_ON_AFTER_S:
            passed_on = len(asked)
            child.send_signal(signal.SIGTERM)
        time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ended(child.returncode, time.monotonic() - started, peak, bool(asked))


@contextmanager
def stop_signals() -> Iterator[list[float]]:
    """Collect the times (monotonic seconds) of SIGTERM and SIGINT; the old handlers come back at the end."""
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        # SIGTERM comes to us alone and goes on at once; of a Ctrl-C the stage may know already.
        asked.append(time.monotonic() - (PASS_ON_AFTER_S if number == signal.SIGTERM else 0))

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _remember(run: RunFolder, stage: Stage, ended: Ended) -> None:
    """Add this process to the manifest: a stage that was stopped has had several."""
    processes = run.manifest().get("processes", {})
    before = processes.get(stage, {"count": 0, "seconds": 0.0, "peak_rss_bytes": 0})
    processes[stage] = {
        "count": before["count"] + 1,
        "seconds": round(before["seconds"] + ended.seconds, 2),
        "peak_rss_bytes": max(before["peak_rss_bytes"], ended.peak_rss_bytes),
    }
    run.note("processes", processes)


def _check(run: RunFolder, stage: Stage, ended: Ended) -> None:
    if ended.code == 0 and is_done(run, stage):
        return
    run.log(f"run: the stage {stage} ended with exit code {ended.code}")
    if ended.code == EXIT_STOPPED or (ended.stop_asked and ended.code in _STOPPED_CODES):
        raise Stopped(f"The run stopped in the stage {stage!r}.")
    if ended.code == EXIT_USER_ERROR:
        raise UserError(
            f"the stage {stage!r} cannot go on; its error stands above.",
            where=str(run.path),
            next_step="Mend it and run the same command again; finished stages are kept.",
        )
    if ended.code < 0:
        number = -ended.code
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        how = f"was killed by {_signal_name(number)}{hint}"
    else:
        how = f"ended with exit code {ended.code}" if ended.code else "ended without its result"
    raise StageFailed(f"{run.path}: the stage {stage!r} {how}. Its traceback is above and in {run.log_file}.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
