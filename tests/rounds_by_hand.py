"""A finished run with a guard, and what the stages of its later rounds would leave, written by hand: no model works."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluated_run import make_run
from test_pipeline import finished_run

from ssd_lite.atomic import write_text
from ssd_lite.errors import UserError
from ssd_lite.recipe_file import dump_recipe, validate
from ssd_lite.recipe_stages import Stage
from ssd_lite.run_folder import RunFolder

SET = "sums"
QUESTIONS = 60


def run_with_guard(folder: Path, rounds: int, *, right: int, base_right: int = 30) -> RunFolder:
    """A finished first round: of 60 guard questions the base is right on `base_right`, its tuned model on `right`."""
    made = finished_run(folder)
    value = made.recipe.model_dump()
    value["rounds"] = rounds
    value["evaluate"]["guard"] = [{"problems": f"questions:{SET}.jsonl"}]
    recipe = validate(value, "here")
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    run = RunFolder(folder, recipe)
    for stage, entry in run.manifest()["stages"].items():
        run.finish(stage, {**entry["summary"], "verdict": "gain", "sentence": "Gain.", "guard": []}, 1.0)
    for side, count in (("base", base_right), ("tuned", right)):
        write_guard(run, side, count)
    (run.arm("tuned").path / "made_with.json").write_text("{}")
    return run


def write_guard(run: RunFolder, side: str, right: int) -> None:
    """The report of a side on the guard set, of which the first `right` questions are answered right."""
    rows = [{"problem_id": f"q{i}", "difficulty": None, "n": 1, "passed": int(i < right)} for i in range(QUESTIONS)]
    about = {"name": SET, "count": QUESTIONS, "sha256": "ab" * 32}
    file = run.path / "evaluations" / "guard" / SET / side / "report.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"arm": side, "k": [1], "n": 1, "problems": about, "per_problem": rows}))


class Stages:
    """Stands in for `pipeline.run_stages`: does each round as planned and remembers what was exported.

    `plan` gives for each round its guard answers and pass rate, or what to do instead, which may raise.
    """

    def __init__(self, plan: Mapping[str, tuple[int, float] | Callable[[RunFolder], None]]) -> None:
        self.plan, self.exported = dict(plan), list[str]()

    def __call__(self, run: RunFolder, stages: Sequence[Stage], *_: Any, **__: Any) -> dict[str, float]:
        if "export" in stages:
            self.exported.append(run.path.name)
            return {}
        planned = self.plan[run.path.name]
        if callable(planned):
            planned(run)
            return {}
        if run.arm("tuned").report.is_file():  # what is done is not done again
            return {}
        right, rate = planned
        source = make_run(run.path.parent / f"{run.path.name}.made", tuned_rate=rate)
        for arm in ("base", "tuned"):
            for file in source.arm(arm).path.iterdir():
                file.rename(run.arm(arm).path / file.name)
            write_guard(run, arm, right)  # against the round before, whatever that was, nothing falls
        (run.arm("tuned").path / "made_with.json").write_text("{}")
        return {"evaluate": 1.0}


def finds_nothing(run: RunFolder) -> None:
    """What `run_stages` does where `curate` is left without a sample."""
    run.note("nothing_to_learn", "0 of 4 samples left: 4 empty")
    raise UserError("the stage 'curate' cannot go on; its error stands above.")


def breaks(run: RunFolder) -> None:
    """An error that has nothing to do with what was learnt."""
    raise UserError("the disk is full.")
