"""More rounds: sample again from the merged model, train on that, and stop where the model starts to fall."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ssd_lite import heartbeat
from ssd_lite.atomic import write_json
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import validate
from ssd_lite.recipe_stages import Stage, stages_of
from ssd_lite.run_folder import ArmFolder, RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.answers import read_samples
from ssd_lite.stages.child import stop_signals
from ssd_lite.stages.evaluation.guard import arm_folder, guard_names
from ssd_lite.stages.nothing_left import nothing_left
from ssd_lite.stages.pages.rounds_section import ROUNDS_FILE
from ssd_lite.stages.pipeline import last_word, run_stages
from ssd_lite.stages.report import report
from ssd_lite.stages.round_guard import against_base
from ssd_lite.stages.round_numbers import Numbers, best_round, changes, numbers, reason_to_stop, shown
from ssd_lite.stages.round_status import ASKED_KEY

WARNING = (
    "Several rounds of raw self-distillation are unpublished. Training on one's own output again and again is known to "
    "narrow a model until it collapses; the rounds stop where pass@k or diversity falls beyond its interval."
)
Say = Callable[[str], None]


def run_rounds(run: RunFolder, count: int, *, say: Say, stdout: int | None = None) -> dict[str, Any]:
    """Rounds 2 to `count` after a run that is done, each a run folder in rounds/; writes rounds.json and the report.

    Both are written after each round, so an error in a later one leaves those before it. A round that finds nothing to
    learn from, as a collapsed model does, ends the rounds and is no error. Goes on where it was. Returns {"asked",
    "rounds", "changes", "against_base", "stopped", "best", "warning"}; raises what `pipeline.run_stages` does.
    """
    say(f"Warning: {WARNING}\n")
    course = _Course(run, count)
    before, stopped = run, None
    # The run is locked beside its rounds, so that a second command meets the lock and leaves the heartbeat alone.
    with stop_signals() as asked, run_lock(run.path), last_word(run.path), _news_for(run.path):
        run.note(ASKED_KEY, count)
        heartbeat.finish(run.path, heartbeat.WORKING)  # the run was done, and goes on
        for number in range(2, count + 1):
            inner = _prepare(run, before, number)
            say(f"Round {number} of {count}, from {before.merged}:")
            nothing = nothing_left(inner, partial(run_stages, inner, _stages(inner), asked, say=say, stdout=stdout))
            if nothing is not None:
                stopped = f"stopped after round {number - 1}: round {number} found nothing to learn from ({nothing})"
                say(f"The rounds end here: {stopped}.\n")
                break
            course.add(str(number), inner)
            before, stopped = inner, _reason(course.found, course.made, number, course.seed)
            if stopped is not None:
                break
            if not _holds(run, course):
                _write(run, course.result(None))
        result = course.result(stopped)
        _write(run, result)
        if result["best"] not in ("base", "1"):
            best = RunFolder.open(run.path / "rounds" / result["best"])
            run_stages(best, ("export",), asked, say=say, stdout=stdout)
    return result


class _Course:
    """The rounds so far: figures of each, the change to the one before, and each against the base."""

    def __init__(self, run: RunFolder, count: int) -> None:
        self._run, self._count, self.seed = run, count, run.recipe.evaluate.seed
        self.found: list[Numbers] = [_numbers("base", run, "base", self.seed)]
        self.made: list[dict[str, Any]] = []
        self._against: dict[str, dict[str, Any]] = {}
        self.add("1", run)

    def add(self, name: str, inner: RunFolder) -> None:
        """Take in a round that is through."""
        self.found.append(_numbers(name, inner, "tuned", self.seed))
        self.made.append(changes(self.found[-2], self.found[-1], self.seed))
        self._against[name] = against_base(self._run, inner)

    def result(self, stopped: str | None) -> dict[str, Any]:
        """What stands in rounds.json."""
        return {
            "asked": self._count,
            "rounds": [shown(one) for one in self.found],
            "changes": list(self.made),
            "against_base": dict(self._against),
            "stopped": stopped,
            "best": best_round(self.found),
            "warning": WARNING,
        }


@contextmanager
def _news_for(folder: Path) -> Iterator[None]:
    """The heartbeats of the rounds go to the run too: it is what watchers look at."""
    os.environ[heartbeat.PARENT] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[heartbeat.PARENT]


def _read(run: RunFolder) -> dict[str, Any] | None:
    try:
        value = json.loads((run.path / ROUNDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _holds(run: RunFolder, course: _Course) -> bool:
    """Does rounds.json have these rounds already, and maybe later ones, from before this command?"""
    there, wanted = _read(run) or {}, course.result(None)
    return all(there.get(key, [])[: len(wanted[key])] == wanted[key] for key in ("rounds", "changes"))


def _write(run: RunFolder, result: dict[str, Any]) -> None:
    """rounds.json, and the report again with it; nothing where it says the same already."""
    if _read(run) != result:
        write_json(run.path / ROUNDS_FILE, result)
    report(run)


def _reason(found: Sequence[Numbers], made: Sequence[dict[str, Any]], number: int, seed: int) -> str | None:
    """Why the rounds end here, or None. Round 1 is looked at too, or a slow fall of small steps would never stop."""
    for other, change in ((number - 1, made[-1]), (1, changes(found[1], found[-1], seed))):
        reason = reason_to_stop(change)
        if reason is not None:
            return f"stopped after round {number}: against round {other} {reason}"
    return None


def _stages(inner: RunFolder) -> tuple[Stage, ...]:
    """All but the export: only the best round is exported."""
    return tuple(stage for stage in stages_of(inner.recipe) if stage != "export")


def _prepare(run: RunFolder, before: RunFolder, number: int) -> RunFolder:
    inner = RunFolder.create(run.path / "rounds" / str(number), round_recipe(run.recipe, before, number))
    if inner.done("evaluate") is None:
        _take_arm(before.arm("tuned"), inner.arm("base"))
        for name in guard_names(run.recipe.evaluate.guard):
            _take_arm(arm_folder(before, name, "tuned"), arm_folder(inner, name, "base"))
    return inner


def round_recipe(recipe: Recipe, before: RunFolder, number: int) -> Recipe:
    """The recipe of round `number`: its model is the merged one before, and its base is decoded as that was tuned.

    Seeds of sampling and training move on by one a round. Evaluation keeps its seed, so rounds are paired.
    """
    value = recipe.model_dump()
    value["name"], value["rounds"] = f"{recipe.name}-round{number}", 1
    value["model"] |= {"name": str(before.merged.absolute()), "revision": None}
    for section in ("sample", "train"):
        value[section]["seed"] += number - 1
    value["evaluate"]["base"] = value["evaluate"]["tuned"]
    return validate(value, f"round {number}")


def _take_arm(source: ArmFolder, target: ArmFolder) -> None:
    """A base arm of a round is the tuned arm of the one before: samples and grades are taken, not made again."""
    if not (source.report.is_file() and source.samples.is_file()) or target.samples.exists():
        return
    target.path.mkdir(parents=True, exist_ok=True)
    for name in ("made_with.json", source.grades.name, source.samples.name):  # samples last: they say it is complete
        part = target.path / f".{name}.part"
        shutil.copyfile(source.path / name, part)
        part.rename(target.path / name)


def _numbers(name: str, run: RunFolder, arm: str, seed: int) -> Numbers:
    files: ArmFolder = run.arm(arm)
    report = json.loads(files.report.read_text(encoding="utf-8"))
    return numbers(name, report, read_samples(files.samples), seed)
