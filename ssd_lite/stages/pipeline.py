"""A whole run: one process a stage, in order, under one lock. A stage that is done starts no process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ssd_lite import heartbeat
from ssd_lite.errors import EXIT_USER_ERROR, Stopped, UserError
from ssd_lite.interrupt import past_limit
from ssd_lite.progress import duration
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import differences
from ssd_lite.recipe_stages import Stage, stages_of
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.child import Ended, run_command, stop_signals
from ssd_lite.stages.plan_watch import PlanWatch
from ssd_lite.stages.recipe_needs import check_context, check_libraries, check_server, runs_programs
from ssd_lite.stages.status import has_files, holder


class StageFailed(click.ClickException):
    """A stage ended by a bug or was killed; its traceback is above and in the log. Exit code 1."""


def prepare(path: Path, recipe: Recipe) -> RunFolder:
    """The run at `path`, new or gone on with. What a new recipe needs is looked for before anything is written."""
    if not (path / "recipe.yaml").is_file() or differences(RunFolder.open(path).recipe, recipe):
        check_machine(recipe)
    return RunFolder.create(path, recipe)


def check_machine(recipe: Recipe) -> None:
    """Raise UserError now for what a stage hours later would miss: a library, or a sandbox that holds here."""
    check_context(recipe)
    check_libraries(recipe)
    check_server(recipe)
    if runs_programs(recipe):
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
    with stop_signals() as asked, last_word(run.path):
        ran = run_stages(run, stages_of(run.recipe), asked, say=say, stdout=stdout)
    from ssd_lite.stages.report import table

    return {
        "run": str(run.path),
        "ran": ran,
        "stages": {stage: run.require(stage) for stage in stages_of(run.recipe)},
        "processes": run.manifest().get("processes", {}),
        "report": str(run.report),
        "table": table(run),
    }


def run_stages(
    run: RunFolder, stages: Sequence[Stage], asked: Sequence[float], *, say: Callable[[str], None], stdout: int | None
) -> dict[str, float]:
    """Do those of the stages that are not done, in order, under the run's lock; returns the seconds of those that ran.

    `asked` is what `stop_signals` collects. Raises Stopped, UserError and StageFailed as `run_all` does.
    """
    ran: dict[str, float] = {}
    with run_lock(run.path) as lock:
        for number, stage in enumerate(stages, start=1):
            if is_done(run, stage):
                continue
            if asked or past_limit():
                raise Stopped(f"The run stopped before the stage {stage!r}{_why()}.")
            say(f"[{number}/{len(stages)}] {stage}")
            ended = run_command([stage, str(run.path)], lock, stdout, asked, PlanWatch(run, stage, say))
            _remember(run, stage, ended)
            _check(run, stage, ended)
            ran[stage] = round(ended.seconds, 1)
            say(f"[{number}/{len(stages)}] {stage}: {duration(ended.seconds)}\n")
    return ran


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
    if ended.stopped:
        raise Stopped(f"The run stopped in the stage {stage!r}{_why()}.")
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


def _why() -> str:
    return ", because its limit of time or money is reached" if past_limit() else ""


@contextmanager
def last_word(folder: Path) -> Iterator[None]:
    """Write into the heartbeat how the run ended, where the process of a stage could not.

    Where it could, its error stays, which says more than ours. A command that is refused because another process works
    in the run has no word in it.
    """
    try:
        yield
    except BaseException as error:
        user = holder(folder)
        if user is None or user["pid"] == os.getpid():
            shown = error.format_message() if isinstance(error, click.ClickException) else None
            stopped = isinstance(error, Stopped | KeyboardInterrupt | SystemExit)
            words = None if stopped else shown or f"{type(error).__name__}: {error}"
            last = heartbeat.read(folder) or {}
            if stopped or last.get("state") != heartbeat.FAILED or not last.get("error"):
                heartbeat.finish(folder, heartbeat.STOPPED if stopped else heartbeat.FAILED, words)
        raise
    heartbeat.finish(folder, heartbeat.DONE)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
