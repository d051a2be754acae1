"""The stage that evaluates: base and tuned answer the same problems, each under its decoding, and are compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_json
from ssd_lite.grading.submissions import Grading, open_grader
from ssd_lite.journal import read_records
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import Grade, Problem, grade_from_json
from ssd_lite.run_folder import ArmFolder, RunFolder
from ssd_lite.stages.answers import Answering, take
from ssd_lite.stages.cut_off import arm_warnings
from ssd_lite.stages.evaluation.arm import Arm, describe
from ssd_lite.stages.evaluation.arm_report import compare
from ssd_lite.stages.evaluation.guard import GuardedArm, run_guard
from ssd_lite.stages.evaluation.quartiles import by_quartile
from ssd_lite.stages.gguf_arms import run_gguf_arms
from ssd_lite.stages.grade import check_golden
from ssd_lite.stages.weights import Weights, base_weights, model_weights, tuned_weights


@dataclass(frozen=True)
class _Arms:
    """What all arms of a run share; `answered` collects who answered, for the guard."""

    run: RunFolder
    problems: Sequence[Problem]
    grader: Grading
    about: dict[str, Any]
    answered: dict[str, GuardedArm] = field(default_factory=dict)

    def evaluate(self, name: str, weights: Weights) -> dict[str, Any]:
        """The report of an arm; all but the base decode as evaluate.tuned says."""
        settings = self.run.recipe.evaluate
        how = arm_answering(self.run.recipe, weights, settings.base if name == "base" else settings.tuned)
        self.answered[name] = GuardedArm(how, _model_name(self.run, name))
        arm = Arm(self.run.arm(name), self.problems, how, settings.k, settings.block)
        return arm.evaluate(self.grader, self.about, self.answered[name].model)


def evaluate(run: RunFolder) -> dict[str, Any]:
    """Evaluate base, tuned and its quantised files, then the guard, into evaluations/.

    Writes ARM/report.json, comparison.json, gguf.json and guard.json. Skips what is done.
    """
    done = run.done("evaluate")
    if done is not None and run.comparison.is_file():
        return done
    run.require("merge")
    from ssd_lite.engines.sampling.choice import choose_engine

    started = time.monotonic()
    settings = run.recipe.evaluate
    engine = choose_engine(settings.engine)
    chosen = load_problems(run.recipe.problems.evaluate, role="evaluate")
    problems = take(chosen.problems, run.recipe.problems.evaluate_limit, settings.seed)
    with open_grader(settings.sandbox, problems) as grader:
        golden = check_golden(grader, problems)
        arms = _Arms(run, problems, grader, describe(chosen, problems, golden))
        reports = {"base": arms.evaluate("base", base_weights(run, engine))}
        reports["tuned"] = arms.evaluate("tuned", tuned_weights(run, engine))
        quantised = run_gguf_arms(run, reports["tuned"], arms.evaluate)
    guard = run_guard(run, {name: arms.answered[name] for name in reports})
    comparison = compare(reports["base"], reports["tuned"], settings.seed)
    comparison["by_quartile"] = by_quartile(_grades(run, "base"), _grades(run, "tuned"), settings.seed)
    write_json(run.comparison, comparison)
    summary = {
        "verdict": comparison["verdict"],
        "sentence": comparison["sentence"],
        "difference": comparison["pass_at_k"],
        "arms": {name: _headline(report) for name, report in reports.items()},
        "grading_tier": reports["base"]["grader"]["tier"],
        "golden": golden,
        "gguf": quantised,
        "guard": guard,
        "warnings": [
            *(warning for report in reports.values() for warning in _warnings(report)),
            *(warning for entry in guard for warning in entry["warnings"]),
        ],
    }
    run.finish("evaluate", summary, time.monotonic() - started)
    return summary


def _grades(run: RunFolder, arm: str) -> list[Grade]:
    return [grade_from_json(record) for record in read_records(run.arm(arm).grades)]


def _headline(report: dict[str, Any]) -> dict[str, Any]:
    keys = ("pass_at_k", "no_code_rate", "cap_rate", "mean_tokens", "samples", "tokens", "seconds")
    return {key: report[key] for key in keys}


def _warnings(report: dict[str, Any]) -> list[str]:
    cap = report["settings"]["max_new_tokens"]
    return arm_warnings(report["arm"], report["cap_rate"], report["samples"], cap, "evaluate.max_new_tokens")


def _model_name(run: RunFolder, arm: str) -> str:
    return run.recipe.model.name if arm == "base" else f"{run.recipe.model.name} + {run.recipe.name}"


def arm_answering(recipe: Recipe, model: Weights, decoding: Decoding) -> Answering:
    """How these weights answer as an arm: under `decoding`, everything else as section evaluate says."""
    settings = recipe.evaluate
    return Answering(
        engine=model.engine,
        folder=model.folder,
        weights=model.file,
        model_hash=model.sha256,
        settings=decoding.settings(settings.max_new_tokens),
        n=settings.n,
        seed=settings.seed,
        batch_size=settings.batch_size,
        threads=recipe.threads,
        gguf_type=model.gguf_type,
        enable_thinking=recipe.model.enable_thinking,
        server=recipe.server,
    )


def evaluate_model(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Evaluate `recipe.model`, without a run, under `evaluate.base`, into `out`/{samples,grades}.jsonl and report.json.

    A GGUF runs as it is, a folder under llama.cpp as model.gguf_type. Goes on after a kill; results that were made
    otherwise are refused.
    """
    from ssd_lite.engines.model_source import resolve_model
    from ssd_lite.engines.sampling.choice import choose_engine

    settings = recipe.evaluate
    chosen = load_problems(recipe.problems.evaluate, role="evaluate")
    problems = take(chosen.problems, recipe.problems.evaluate_limit, settings.seed)
    source = resolve_model(recipe.model.name, recipe.model.revision)
    engine = choose_engine(settings.engine)
    gguf = recipe.server.takes_gguf(engine)
    model = model_weights(source, engine, recipe.model.gguf_type, recipe.threads, gguf=gguf)
    with open_grader(settings.sandbox, problems) as grader:
        golden = check_golden(grader, problems)
        arm = Arm(ArmFolder(out), problems, arm_answering(recipe, model, settings.base), settings.k, settings.block)
        return arm.evaluate(grader, describe(chosen, problems, golden), recipe.model.name)
