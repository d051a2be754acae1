"""The plan of a run that has begun: its own counts in place of guesses, its measured speeds beside the plan."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from ssd_lite.journal import read_records
from ssd_lite.plan.work import Load, optimiser_steps
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.plan import Answered, Question, answer, find_model, load_of
from ssd_lite.stages.status import has_files, lines

# The first step of a process loads kernels and tunes threads.
WARM_UP_STEPS = 1


def plan_run(run: RunFolder, question: Question) -> tuple[Answered, dict[str, Any]]:
    """The plan, corrected by what the run knows, and per stage what was measured: hours, and for an unfinished training
    hours in all and hours left, from the median of its steps."""
    entries = run.manifest().get("stages", {})
    load = _known_load(load_of(run.recipe, question.mean_tokens), entries, question)
    answered = answer(run.recipe, find_model(run.recipe), load, question)
    measured: dict[str, Any] = {}
    processes = run.manifest().get("processes", {})
    for stage, entry in entries.items():
        if stage in answered.plan.stages and has_files(run, stage):
            peak = processes.get(stage, {}).get("peak_rss_bytes")
            measured[stage] = {"done": True, "hours": entry["seconds"] / 3600, "host_peak_bytes": peak}
    if "train" not in measured and (projected := _training(run)) is not None:
        measured["train"] = projected
    return answered, measured


def _known_load(load: Load, entries: dict[str, Any], question: Question) -> Load:
    """Counts and mean completion as the stage sample found them."""
    summary = entries.get("sample", {}).get("summary", {})
    if not summary.get("samples"):
        return load
    mean = question.mean_tokens or max(1, round(summary["tokens"] / summary["samples"]))
    return replace(load, train=replace(load.train, count=summary["problems"]["count"]), mean_tokens=mean)


def _training(run: RunFolder) -> dict[str, Any] | None:
    """Steps done and to do, and the hours they take at the median speed so far; None before a second step."""
    if not run.metrics.is_file():
        return None
    steps = read_records(run.metrics)
    timed = steps[WARM_UP_STEPS:]
    if not timed:
        return None
    whole = optimiser_steps(run.recipe.train, lines(run.train_rows))
    second = statistics.median(float(step["seconds"]) for step in timed)
    done = sum(float(step["seconds"]) for step in steps)
    left = max(0, whole - len(steps)) * second
    return {
        "done": False,
        "hours": (done + left) / 3600,
        "hours_left": left / 3600,
        "steps": len(steps),
        "steps_in_all": whole,
        "seconds_per_step": second,
        "tokens_per_s": statistics.median(float(s["input_tokens"]) / float(s["seconds"]) for s in timed),
    }
