"""Which samples pass their problems' tests: grades into a journal, for the arms of an evaluation and for curate."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.errors import Stopped, UserError
from ssd_lite.grading.extract import Block
from ssd_lite.grading.submissions import Grading, open_grader, submission
from ssd_lite.interrupt import stop_requested
from ssd_lite.journal import Journal
from ssd_lite.problems.named import load_problems
from ssd_lite.progress import Progress
from ssd_lite.records import Grade, Problem, Sample, grade_from_json, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import sample_key
from ssd_lite.stages.grade import check_golden


@dataclass(frozen=True)
class Graded:
    """The keys (problem id, index) of the samples that passed, and what a summary says of the grading."""

    passed: frozenset[tuple[str, int]]
    summary: dict[str, Any]


def require_tests(problems: Sequence[Problem], wanted_by: str) -> None:
    """Raise UserError, with their number, for training problems without tests; `wanted_by` is a recipe key."""
    bare = [problem.id for problem in problems if problem.test is None]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(problems)} training problems have no tests, such as {bare[0]!r}, "
            f"and {wanted_by} learns from correctness.",
            where="problems.train",
            next_step=f"Name a set with tests (starter, mbpp:train, your own JSONL), or leave out {wanted_by}.",
        )


def require_gradable(run: RunFolder, problems: Sequence[Problem]) -> None:
    """Raise UserError before hours of sampling for what curate.only_correct would refuse after them.

    That is problems without tests, and golden solutions that fail.
    """
    require_tests(problems, "curate.only_correct")
    with open_grader(run.recipe.evaluate.sandbox, problems) as grader:
        check_golden(grader, problems)


def grade_samples(
    grader: Grading, samples: Sequence[Sample], problems: Sequence[Problem], file: Path, block: Block, label: str
) -> list[Grade]:
    """The grades of all samples; those that the journal `file` lacks are made now, each durable when it is ready.

    Raises Stopped after a signal.
    """
    by_id = {problem.id: problem for problem in problems}
    with Journal(file, sample_key) as journal:
        waiting = [sample for sample in samples if sample.key not in journal]
        submissions = [
            submission(by_id[s.problem_id], s.index, s.completion, block=block, opened_thinking=s.opened_thinking)
            for s in waiting
        ]
        if waiting:
            with Progress(len(samples), "programs", label, start=len(samples) - len(waiting)) as progress:
                for grade in grader.grade(submissions):
                    journal.append([to_json(grade)])
                    progress.advance()
                    if stop_requested():
                        raise Stopped(f"{label} stopped after {len(journal)} of {len(samples)} programs.")
        return [grade_from_json(record) for record in journal.records]


def grade_training_samples(run: RunFolder, samples: Sequence[Sample]) -> Graded:
    """Grade the run's samples with the tests of its training problems, into curate_grades.jsonl; goes on after a kill.

    Golden solutions first. Raises UserError for problems without tests, for a golden solution that fails, and where the
    problem set or the grading changed since.
    """
    recipe = run.recipe
    chosen = load_problems(recipe.problems.train, role="train")
    if chosen.sha256 != run.require("sample")["problems"]["sha256"]:
        raise UserError(
            "the training problems are not those that were sampled: their file has changed.",
            where=recipe.problems.train,
            next_step="Put the old file back, or start a new run with --out.",
        )
    sampled = {sample.problem_id for sample in samples}
    problems = [problem for problem in chosen.problems if problem.id in sampled]
    require_tests(problems, "curate.only_correct")
    with open_grader(recipe.evaluate.sandbox, problems) as grader:
        _hold_to(run, {"tier": grader.tier, "block": recipe.evaluate.block, "samples_sha256": _digest(samples)})
        golden = check_golden(grader, problems)
        grades = grade_samples(grader, samples, problems, run.curate_grades, recipe.evaluate.block, "grade samples")
    passed = frozenset((grade.problem_id, grade.index) for grade in grades if grade.passed)
    summary = {
        "samples": len(grades),
        "passed": len(passed),
        "problems": len(problems),
        "problems_passed": len({problem for problem, _ in passed}),
        "verdicts": dict(Counter(grade.verdict for grade in grades).most_common()),
        "tier": grader.tier,
        "golden": golden,
    }
    return Graded(passed, summary)


def _hold_to(run: RunFolder, facts: dict[str, str]) -> None:
    """Note what the grades stand on. Raises UserError where grades are there that stand on something else."""
    noted = run.manifest().get("curate_grades")
    if noted is not None and noted != facts and run.curate_grades.is_file() and run.curate_grades.stat().st_size:
        changed = ", ".join(key for key, value in facts.items() if noted.get(key) != value)
        raise UserError(
            f"holds grades that were made otherwise ({changed}), and two kinds are not mixed.",
            where=str(run.curate_grades),
            next_step="Put the old settings back, or move the file away to grade again.",
        )
    run.note("curate_grades", facts)


def _digest(samples: Sequence[Sample]) -> str:
    rows = sorted((sample.problem_id, sample.index, sample.completion) for sample in samples)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
