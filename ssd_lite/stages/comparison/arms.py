"""Evaluates arms of a comparison: one model under some decodings, on the dev or test split or on a further set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ssd_lite.atomic import write_text
from ssd_lite.errors import UserError
from ssd_lite.grading.submissions import Grading, open_grader
from ssd_lite.records import Problem
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.comparison.basis import evaluated_with
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.plan import BASE, ArmOrder, completions, trained_runs
from ssd_lite.stages.comparison.sets import problems_of
from ssd_lite.stages.evaluate import arm_answering
from ssd_lite.stages.evaluation.arm import Arm
from ssd_lite.stages.grade import check_golden
from ssd_lite.stages.weights import base_weights, tuned_weights


def evaluate_arms(folder: ComparisonFolder, orders: Sequence[ArmOrder]) -> list[dict[str, Any]]:
    """Evaluate arms in this process, each into its folder; goes on after a kill. Returns their reports.

    An error that the user can mend is left in `folder.failure` too, for the process that started this one.
    """
    try:
        folder.settle(evaluated_with(folder.recipe))
        reports = {}
        for name in dict.fromkeys(order.problems for order in orders):
            problems, about = problems_of(folder.recipe, name)
            with open_grader(folder.recipe.evaluate.sandbox, problems) as grader:
                about["golden"] = check_golden(grader, problems)
                for order in orders:
                    if order.problems == name:
                        reports[order] = _evaluate(folder, order, problems, about, grader)
    except UserError as error:
        write_text(folder.failure, error.format_message())
        raise
    return [reports[order] for order in orders]


def _evaluate(
    folder: ComparisonFolder, order: ArmOrder, problems: Sequence[Problem], about: dict[str, Any], grader: Grading
) -> dict[str, Any]:
    from ssd_lite.engines.sampling.choice import choose_engine

    recipe = folder.recipe
    run, engine = run_of(folder, order.model), choose_engine(recipe.evaluate.engine)
    model = base_weights(run, engine) if order.model == BASE else tuned_weights(run, engine)
    n = completions(recipe, order)
    how = replace(arm_answering(recipe, model, order.decoding), n=n)
    files = folder.arm(order)
    files.path.mkdir(parents=True, exist_ok=True)
    ks = sorted({1, *(k for k in recipe.evaluate.k if k <= n)})  # decodings are chosen by pass@1
    arm = Arm(files, problems, how, ks, recipe.evaluate.block)
    return arm.evaluate(grader, about, order.model)


def run_of(folder: ComparisonFolder, model: str) -> RunFolder:
    """The run that holds a model; every run holds the base."""
    runs = {trained.name: trained for trained in trained_runs(folder.recipe)}
    trained = next(iter(runs.values())) if model == BASE else runs.get(model)
    if trained is None:
        raise UserError(f"the comparison has no model {model!r}; it has base, {', '.join(runs)}.", where="--arm")
    return folder.run(trained)
