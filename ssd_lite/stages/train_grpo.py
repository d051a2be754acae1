"""The stage that trains where train.grpo is set: problems and the base model in, adapter/ out; the grader rewards.

No sample of the run is read: GRPO draws its own completions, from the model being trained.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from typing import Any

from ssd_lite.engines.host_memory import peak_rss_bytes
from ssd_lite.errors import MissingLibraryError, NothingToLearnError, UserError
from ssd_lite.grading.extract import Block, opens_thinking
from ssd_lite.grading.submissions import Grading, open_grader, submission
from ssd_lite.problems.named import load_problems
from ssd_lite.problems.overlap import refuse_overlap
from ssd_lite.prompts import render
from ssd_lite.records import Problem, Prompt
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import take
from ssd_lite.stages.base_model import base_model, check_gguf
from ssd_lite.stages.evaluation.guard import guard_problems
from ssd_lite.stages.grade import check_golden
from ssd_lite.stages.nothing_left import note_nothing


def train_by_reward(run: RunFolder) -> dict[str, Any]:
    """Train by GRPO; goes on from the newest checkpoint of a stopped run.

    The reward of a completion is 1 where its program passes the problem's tests in the sandbox, else 0. The summary has
    the keys of the stage train, the reward's course, the problems and the grader. Raises UserError for problems without
    tests, for a training prompt of the evaluation set, and for a golden solution that fails.
    """
    if importlib.util.find_spec("trl") is None:
        raise MissingLibraryError("trl", needed_for="train.grpo", extra="grpo")
    recipe, started = run.recipe, time.monotonic()
    train = load_problems(recipe.problems.train, role="train")
    evaluation = load_problems(recipe.problems.evaluate, role="evaluate")
    problems = take(train.problems, recipe.problems.train_limit, recipe.sample.seed)
    check_tests(problems)
    refuse_overlap(problems, [*evaluation.problems, *guard_problems(recipe)])
    with open_grader(recipe.evaluate.sandbox, problems) as grader:
        golden = check_golden(grader, problems)
        try:
            summary = _train(run, problems, PassReward(grader, problems, recipe.evaluate.block))
        except NothingToLearnError as error:
            note_nothing(run, error.what)
            raise
        described = grader.describe()
    summary |= {
        "problems": {"name": train.name, "count": len(problems), "sha256": train.sha256, "note": train.note},
        "golden": golden,
        "grader": described,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if os.environ.get("RANK", "0") == "0":  # under `accelerate launch` one process writes
        run.finish("train", summary, time.monotonic() - started)
    return summary


def check_tests(problems: Sequence[Problem]) -> None:
    """Raise UserError where problems have no tests: nothing could reward their completions."""
    without = [problem.id for problem in problems if problem.test is None]
    if without:
        raise UserError(
            f"{len(without)} of {len(problems)} training problems have no tests, such as {without[0]!r}; "
            "GRPO is rewarded by tests.",
            where="problems.train",
            next_step="Take a set with tests, such as starter or mbpp:train.",
        )


class PassReward:
    """Grades completions: 1.0 where the program passes, 0.0 where it does not or there is none."""

    def __init__(self, grader: Grading, problems: Sequence[Problem], block: Block) -> None:
        self._grader, self._block = grader, block
        self._problems = {problem.id: problem for problem in problems}
        self._opened: set[str] = set()

    def note_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Remember the problems whose prompt already opens the thinking."""
        self._opened = {prompt.problem_id for prompt in prompts if opens_thinking(prompt.text)}

    def __call__(self, problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
        """One reward each; `problem_ids` and `completions` stand side by side."""
        submissions = [
            submission(self._problems[name], index, text, block=self._block, opened_thinking=name in self._opened)
            for index, (name, text) in enumerate(zip(problem_ids, completions, strict=True))
        ]
        rewards = [0.0] * len(submissions)
        for grade in self._grader.grade(submissions):
            rewards[grade.index] = float(grade.passed)
        return rewards


def _train(run: RunFolder, problems: Sequence[Problem], reward: PassReward) -> dict[str, Any]:
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.tokenizer import ChatTokenizer
    from ssd_lite.engines.training.grpo_trainer import train_grpo
    from ssd_lite.engines.training.peft_model import BaseModel
    from ssd_lite.engines.training.trainer import TrainingFiles

    source = base_model(run)
    check_gguf(run.recipe, source)
    folder = hf_folder(source)
    prompts = render(problems, ChatTokenizer.load(folder, run.recipe.model.enable_thinking))
    reward.note_prompts(prompts)
    run.start("train", run.metrics)
    summary = train_grpo(
        prompts,
        folder,
        BaseModel(source.name, source.revision, source.weights_sha256),
        TrainingFiles(run.checkpoints, run.metrics, run.adapter, run.log),
        run.recipe.train,
        reward,
        threads=run.recipe.threads,
    )
    return {"method": run.recipe.train.method, "engine": "trl", **summary}
