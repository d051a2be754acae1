"""The regression guard: other sets on which the tuned model must not fall behind the base; part of `evaluate`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ssd_lite.atomic import write_json
from ssd_lite.grading.submissions import open_grader
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_measuring import Guard
from ssd_lite.records import Problem
from ssd_lite.run_folder import ArmFolder, RunFolder
from ssd_lite.stages.answers import Answering, take
from ssd_lite.stages.cut_off import arm_warnings
from ssd_lite.stages.evaluation.arm import Arm, describe
from ssd_lite.stages.evaluation.arm_report import compare
from ssd_lite.stages.evaluation.guard_verdict import GUARD_FILE
from ssd_lite.stages.grade import check_golden

_FIGURES = (
    "samples", "cap_rate", "no_code_rate", "no_answer_rate", "mean_tokens", "hedging_per_1000_words", "hedging_words",
    "words",
)  # fmt: skip


@dataclass(frozen=True)
class GuardedArm:
    """An arm of the evaluation that also answers the guard's sets."""

    how: Answering
    model: str


def guard_problems(recipe: Recipe) -> list[Problem]:
    """The problems of every guard set, none of which may be trained on. UserError where a set cannot be read."""
    return [problem for guard in recipe.evaluate.guard for problem in _load(guard, recipe.evaluate.seed)[1]]


def run_guard(run: RunFolder, arms: Mapping[str, GuardedArm]) -> list[dict[str, Any]]:
    """Let base and tuned answer each set of evaluate.guard; writes evaluations/guard.json, and goes on after a kill.

    `arms` has "base" and "tuned". An entry has the set, both arms' figures, the paired difference with its interval,
    `dropped` (its high end is below 0) and a sentence. Without a guard nothing is written.
    """
    settings = run.recipe.evaluate
    entries = [
        _guard(run, name, guard, arms) for name, guard in zip(guard_names(settings.guard), settings.guard, strict=True)
    ]
    if entries:
        write_json(run.path / "evaluations" / GUARD_FILE, entries)
    return entries


def guard_names(guards: Sequence[Guard]) -> list[str]:
    """A folder name for each set, from the set's own name; equal ones are numbered."""
    names: list[str] = []
    for guard in guards:
        stem = re.sub(r"\.(?:jsonl|parquet)$", "", guard.problems.replace("\\", "/").rsplit("/", 1)[-1])
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem.removeprefix("questions:")).strip("-.") or "set"
        taken = sum(other == name or other.startswith(f"{name}~") for other in names)
        names.append(f"{name}~{taken + 1}" if taken else name)
    return names


def _load(guard: Guard, seed: int) -> tuple[Any, list[Problem]]:
    chosen = load_problems(guard.problems, role="evaluate")
    return chosen, take(chosen.problems, guard.limit, seed)


def arm_folder(run: RunFolder, name: str, side: str) -> ArmFolder:
    """The files of one side, "base" or "tuned", on the guard set of this name."""
    return ArmFolder(run.path / "evaluations" / "guard" / name / side, f"guard {name} {side}")


def _guard(run: RunFolder, name: str, guard: Guard, arms: Mapping[str, GuardedArm]) -> dict[str, Any]:
    settings = run.recipe.evaluate
    chosen, problems = _load(guard, settings.seed)
    reports = {}
    with open_grader(settings.sandbox, problems) as grader:
        about = describe(chosen, problems, check_golden(grader, problems))
        for side, arm in arms.items():
            cap = guard.max_new_tokens or settings.max_new_tokens
            how = replace(arm.how, n=guard.n, settings=replace(arm.how.settings, max_new_tokens=cap))
            files = arm_folder(run, name, side)
            files.path.mkdir(parents=True, exist_ok=True)
            reports[side] = Arm(files, problems, how, [1], settings.block).evaluate(grader, about, arm.model)
    return {
        "name": name,
        "problems": about,
        "n": guard.n,
        "arms": {side: _figures(report) for side, report in reports.items()},
        **guard_verdict(compare(reports["base"], reports["tuned"], settings.seed)),
        "warnings": [
            warning
            for side, report in reports.items()
            for warning in arm_warnings(
                f"{side} on {name}",
                report["cap_rate"],
                report["samples"],
                report["settings"]["max_new_tokens"],
                "max_new_tokens of this guard",
            )
        ],
    }


def guard_verdict(paired: Mapping[str, Any]) -> dict[str, Any]:
    """What a guard says of two compared arms: `difference`, `mcnemar_p`, `dropped` and a sentence."""
    return {
        "difference": paired["pass_at_k"]["1"],
        "mcnemar_p": paired["mcnemar_p"],
        "dropped": paired["verdict"] == "loss",
        "sentence": paired["sentence"].replace("pass@1", "the share of right answers"),
    }


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    settings = report["settings"]
    return {"right": report["pass_at_k"]["1"], **{key: report[key] for key in _FIGURES}, "settings": settings}
