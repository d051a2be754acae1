"""The problem sets of a comparison: dev, test, further ones and what is trained on, looked at before any training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.grading.submissions import open_grader
from ssd_lite.problems.named import load_problems
from ssd_lite.problems.overlap import refuse_overlap
from ssd_lite.problems.problem_set import ProblemSet
from ssd_lite.recipe import Recipe
from ssd_lite.records import Problem
from ssd_lite.stages.answers import take
from ssd_lite.stages.comparison.plan import TrainedRun, split
from ssd_lite.stages.evaluation.arm import describe
from ssd_lite.stages.evaluation.guard import guard_problems
from ssd_lite.stages.grade import check_golden

SPLITS = ("dev", "test")


def set_names(recipe: Recipe) -> list[str]:
    """Every set that arms are evaluated on: both splits, then compare.extra_sets."""
    return [*SPLITS, *dict.fromkeys(recipe.compare.extra_sets)]


def problems_of(recipe: Recipe, name: str) -> tuple[list[Problem], dict[str, Any]]:
    """The problems of a set's name (dev, test, or a problem set), and what a report says of them."""
    settings = recipe.compare
    if name not in SPLITS:
        chosen = load_problems(name, role="evaluate")
        return list(chosen.problems), describe(chosen, chosen.problems, "")
    chosen = load_problems(recipe.problems.evaluate, role="evaluate")
    dev, test = split(
        take(chosen.problems, settings.limit, recipe.evaluate.seed), settings.dev_share, recipe.evaluate.seed
    )
    problems = dev if name == "dev" else test
    return problems, {**describe(chosen, problems, ""), "split": name}


def check_sets(recipe: Recipe, runs: Sequence[TrainedRun]) -> None:
    """Look at every set now, hours before it is needed.

    Raises UserError for a set that cannot be read or split, for a training prompt on which arms are evaluated, and
    where an arm that grades the training problems would find no tests in them.
    """
    evaluated = {recipe.problems.evaluate: list(load_problems(recipe.problems.evaluate, role="evaluate").problems)}
    for name in set_names(recipe):
        found, _ = problems_of(recipe, name)
        if name not in SPLITS:
            evaluated[name] = found
    guarded = guard_problems(recipe)
    trained_on = training_sets(runs)
    for trained in runs:
        chosen = trained_on[trained.recipe.problems.train]
        problems = take(chosen.problems, trained.recipe.problems.train_limit, trained.recipe.sample.seed)
        _need_tests(trained, problems)
        refuse_overlap(problems, guarded)
        for name, others in evaluated.items():
            _refuse_overlap(problems, others, name)


def training_sets(runs: Iterable[TrainedRun]) -> dict[str, ProblemSet]:
    """The sets whose prompts are trained on, by name; variants may have others than the recipe."""
    return {name: load_problems(name, role="train") for name in dict.fromkeys(r.recipe.problems.train for r in runs)}


def check_solutions(recipe: Recipe, names: Iterable[str]) -> None:
    """Grade the golden solutions of these sets. Raises UserError where one fails: once trained, a set must stay."""
    for name in names:
        problems, _ = problems_of(recipe, name)
        if any(problem.golden is not None for problem in problems):
            with open_grader(recipe.evaluate.sandbox, problems) as grader:
                check_golden(grader, problems)


def _refuse_overlap(problems: Sequence[Problem], evaluated: Sequence[Problem], name: str) -> None:
    try:
        refuse_overlap(problems, evaluated)
    except UserError as error:
        raise UserError(
            error.what.replace("the evaluation set", f"{name}, on which arms are evaluated"),
            where="problems.train",
            next_step="Train on other prompts, or compare on another set.",
        ) from error


def _need_tests(trained: TrainedRun, problems: Sequence[Problem]) -> None:
    without = sum(problem.test is None for problem in problems)
    if without and trained.is_graded:
        raise UserError(
            f"{without} training problems have no tests, which {trained.arm} needs.",
            where="problems.train",
            next_step="Take a set with tests (starter, mbpp:train), or leave this arm out of section compare.",
        )
