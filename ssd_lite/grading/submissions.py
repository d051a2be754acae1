"""What of a completion is graded, its program or its answer in words, and by whom: answers need no sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ssd_lite.errors import UserError
from ssd_lite.grading.answers import judge
from ssd_lite.grading.extract import Block, extract_program, without_thinking
from ssd_lite.grading.grader import Grader
from ssd_lite.grading.steps import Submission
from ssd_lite.grading.tiers import Choice
from ssd_lite.problem_tests import AnswerTest
from ssd_lite.records import Grade, Problem


class Grading(Protocol):
    """Grades submissions: a Grader, or an AnswerGrader where no program runs."""

    @property
    def tier(self) -> str:
        """The isolation in force."""
        ...

    def grade(self, items: Iterable[Submission]) -> Iterator[Grade]:
        """The grades, each as it is ready."""
        ...

    def verify_golden(self, problems: Iterable[Problem]) -> list[Grade]:
        """The grades of golden solutions that do not pass."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a report says of the grading."""
        ...


class AnswerGrader:
    """Judges answers in words, in this process and without a sandbox."""

    tier = "no programs"

    def grade(self, items: Iterable[Submission]) -> Iterator[Grade]:
        """The grades in order. Raises UserError for a problem whose test is no answer."""
        for item in items:
            if not isinstance(item.problem.test, AnswerTest):
                raise UserError("the problem has a program to run, and no sandbox is open.", where=item.problem.id)
            verdict, detail = judge(item.program or "", item.problem.test.answer)
            yield Grade(item.problem.id, item.index, verdict, detail)

    def verify_golden(self, problems: Iterable[Problem]) -> list[Grade]:
        """None: answers have no golden solutions."""
        return []

    def describe(self) -> dict[str, Any]:
        """What a report says of the grading."""
        return {"tier": self.tier, "limits": {}, "weak_problems": [], "refused_tiers": {}}


@contextmanager
def open_grader(sandbox: Choice, problems: Sequence[Problem], workers: int | None = None) -> Iterator[Grading]:
    """A grader for these problems; it starts a sandbox only where one of them has programs to run."""
    if problems and all(isinstance(problem.test, AnswerTest) for problem in problems):
        yield AnswerGrader()
        return
    with Grader(sandbox, workers) as grader:
        yield grader


def submission(
    problem: Problem, index: int, completion: str, *, block: Block, opened_thinking: bool = False
) -> Submission:
    """The `index`-th completion of a problem as it is graded; see `extract_program` for `opened_thinking`."""
    if isinstance(problem.test, AnswerTest):
        return Submission(problem, index, without_thinking(completion, opened=opened_thinking))
    program = extract_program(completion, block=block, opened_thinking=opened_thinking).program
    return Submission(problem, index, program)
