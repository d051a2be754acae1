"""What the grader has still to do: tasks that can go on, new submissions, and tasks that must run alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ssd_lite.grading.sandbox import Job, Outcome
from ssd_lite.grading.steps import Submission
from ssd_lite.records import Grade


@dataclass
class Task:
    """A submission under way: its generator, the job it waits for, and how often its sandbox was lost."""

    submission: Submission
    steps: Generator[Job, Outcome, Grade]
    job: Job | None = None
    losses: int = 0


class Queue:
    """What is still to be done: tasks that can go on, new submissions, and tasks that must run alone."""

    def __init__(self, source: Iterator[Submission]) -> None:
        self._source: Iterator[Submission] | None = source
        self.waiting: deque[Task] = deque()
        self.alone: deque[Task] = deque()

    def ready(self, busy: bool) -> Task | Submission | None:
        """The next thing to start, None where nothing can start now. Lone tasks come last, while nothing runs."""
        if self.waiting:
            return self.waiting.popleft()
        if self._source is not None:
            submission = next(self._source, None)
            if submission is not None:
                return submission
            self._source = None
        return self.alone.popleft() if self.alone and not busy else None

    def put_off(self, task: Task) -> bool:
        """Keep a task whose next job must run alone for the end; False for any other task."""
        if task.job is None or not task.job.alone:
            return False
        self.alone.append(task)
        return True

    def empty(self) -> bool:
        return not self.waiting and not self.alone and self._source is None
