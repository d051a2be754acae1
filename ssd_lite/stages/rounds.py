"""More rounds: sample again from the merged model, train on that, and stop where the model starts to fall."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssd_lite import heartbeat
from ssd_lite.atomic import write_json
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import validate
from ssd_lite.run_folder import ArmFolder, RunFolder, Stage, stages_of
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.answers import read_samples
from ssd_lite.stages.child import stop_signals
from ssd_lite.stages.pipeline import last_word, run_stages
from ssd_lite.stages.report import report
from ssd_lite.stages.round_numbers import Numbers, best_round, changes, numbers, reason_to_stop, shown
from ssd_lite.stages.round_status import ASKED_KEY
from ssd_lite.stages.rounds_section import ROUNDS_FILE

WARNING = (
    "Several rounds of raw self-distillation are unpublished. Training on one's own output again and again is known to "
    "narrow a model until it collapses; the rounds stop where pass@k or diversity falls beyond its interval."
)
Say = Callable[[str], None]


def run_rounds(run: RunFolder, count: int, *, say: Say, stdout: int | None = None) -> dict[str, Any]:
    """Rounds 2 to `count` after a run that is done, each a run folder in rounds/; writes rounds.json and the report.

    Goes on where it was. Returns {"rounds", "changes", "stopped", "best"}; raises what `pipeline.run_stages` does.
    """
    say(f"Warning: {WARNING}\n")
    seed = run.recipe.evaluate.seed
    found = [_numbers("base", run, "base", seed), _numbers("1", run, "tuned", seed)]
    made = [changes(found[0], found[1], seed)]
    before, stopped = run, None
    # The run is locked beside its rounds, so that a second command meets the lock and leaves the heartbeat alone.
    with stop_signals() as asked, run_lock(run.path), last_word(run.path), _news_for(run.path):
        run.note(ASKED_KEY, count)
        heartbeat.finish(run.path, heartbeat.WORKING)  # the run was done, and goes on
        for number in range(2, count + 1):
            inner = _prepare(run, before, number)
            say(f"Round {number} of {count}, from {before.merged}:")
            run_stages(inner, _stages(inner), asked, say=say, stdout=stdout)
            found.append(_numbers(str(number), inner, "tuned", seed))
            made.append(changes(found[-2], found[-1], seed))
            before, stopped = inner, _reason(found, made, number, seed)
            if stopped is not None:
                break
        result = _result(found, made, stopped)
        if result["best"] not in ("base", "1"):
            best = RunFolder.open(run.path / "rounds" / result["best"])
            run_stages(best, ("export",), asked, say=say, stdout=stdout)
        _write(run, result)
    return result


@contextmanager
def _news_for(folder: Path) -> Iterator[None]:
    """The heartbeats of the rounds go to the run too: it is what watchers look at."""
    os.environ[heartbeat.PARENT] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[heartbeat.PARENT]


def _write(run: RunFolder, result: dict[str, Any]) -> None:
    """rounds.json, and the report again with it; nothing where it says the same already."""
    file = run.path / ROUNDS_FILE
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != result:
        write_json(file, result)
    report(run)


def _reason(found: Sequence[Numbers], made: Sequence[dict[str, Any]], number: int, seed: int) -> str | None:
    """Why the rounds end here, or None. Round 1 is looked at too, or a slow fall of small steps would never stop."""
    for other, change in ((number - 1, made[-1]), (1, changes(found[1], found[-1], seed))):
        reason = reason_to_stop(change)
        if reason is not None:
            return f"stopped after round {number}: against round {other} {reason}"
    return None


def _result(found: Sequence[Numbers], made: Sequence[dict[str, Any]], stopped: str | None) -> dict[str, Any]:
    return {
        "rounds": [shown(one) for one in found],
        "changes": list(made),
        "stopped": stopped,
        "best": best_round(found),
        "warning": WARNING,
    }


def _stages(inner: RunFolder) -> tuple[Stage, ...]:
    """All but the export: only the best round is exported."""
    return tuple(stage for stage in stages_of(inner.recipe) if stage != "export")


def _prepare(run: RunFolder, before: RunFolder, number: int) -> RunFolder:
    inner = RunFolder.create(run.path / "rounds" / str(number), round_recipe(run.recipe, before, number))
    if inner.done("evaluate") is None:
        _take_base_arm(before, inner)
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


def _take_base_arm(before: RunFolder, inner: RunFolder) -> None:
    """The base arm of a round is the tuned arm of the one before: its samples and grades are taken, not made again."""
    source, target = before.arm("tuned"), inner.arm("base")
    if not source.report.is_file() or target.samples.exists():
        return
    for name in ("made_with.json", source.grades.name, source.samples.name):  # samples last: they say it is complete
        part = target.path / f".{name}.part"
        shutil.copyfile(source.path / name, part)
        part.rename(target.path / name)


def _numbers(name: str, run: RunFolder, arm: str, seed: int) -> Numbers:
    files: ArmFolder = run.arm(arm)
    report = json.loads(files.report.read_text(encoding="utf-8"))
    return numbers(name, report, read_samples(files.samples), seed)
