"""The grader: submissions in, grades out as they finish, one sandbox a worker, verdicts made on this side.

One thread, one loop over the workers' control sockets. A sandbox that a program soiled or brought down is replaced; a
job whose sandbox was lost runs once more in a fresh one.
"""

from __future__ import annotations

import selectors
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Self

from ssd_lite.container import usable_cores
from ssd_lite.errors import UserError
from ssd_lite.grading.plans import Plan, WeakPlan, make_plan
from ssd_lite.grading.sandbox import Job, Outcome, Sandbox, SandboxError
from ssd_lite.grading.steps import Submission, golden_submission, grade_steps
from ssd_lite.grading.task_queue import Queue, Task
from ssd_lite.grading.tiers import Choice, choose_tier
from ssd_lite.records import Grade, Limits, Problem

__all__ = ["Grader", "Submission"]
PLANS_KEPT = 4096
FRUITLESS_STARTS = 3
FAULTS, FAULT_SHARE = 5, 0.005
"""Grades that the grader itself may fail to make: a program may find a hole in it, but beyond both it is our bug."""


class _Worker:
    """One place for a sandbox, and the task that runs in it."""

    def __init__(self) -> None:
        self.sandbox: Sandbox | None = None
        self.task: Task | None = None


class Grader:
    """Grades programs in sandboxes; a context manager. `tier` is the isolation in force.

    `sandbox` "auto" takes bubblewrap where its canaries hold, then Landlock, then raises UserError; "none" only when
    asked for by name. `workers` defaults to the cores this process may use; `limits` to `Limits()`, a problem's own
    rule. Use it from a thread that lives as long as it does: the sandboxes end with the thread that started them.
    """

    def __init__(self, sandbox: Choice = "auto", workers: int | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.tier, self._first, self.refused = choose_tier(sandbox)
        self._count = workers or usable_cores()
        self._workers = [_Worker() for _ in range(self._count)]
        self._workers[0].sandbox = self._first
        self._facts = dict(self._first.facts)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._first.control, selectors.EVENT_READ, self._workers[0])
        self._plans: dict[str, tuple[Problem, Plan]] = {}
        self._weak: set[str] = set()
        self._fruitless = 0
        self._faults = self._finished = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every sandbox. Safe to call twice."""
        for worker in self._workers:
            self._drop_sandbox(worker)
        self._selector.close()

    def describe(self) -> dict[str, Any]:
        """What a report says of the grading: isolation, interpreter, limits, workers, weak checks, our own faults."""
        facts = {key: self._facts.get(key) for key in ("python", "landlock_abi", "seccomp")}
        body = {"tier": self.tier, **facts, "limits": asdict(self.limits), "workers": self._count}
        return {**body, "weak_problems": sorted(self._weak), "refused_tiers": self.refused, "faults": self._faults}

    def verify_golden(self, problems: Iterable[Problem]) -> list[Grade]:
        """Grade each problem's own golden solution, with five times the limits; returns the grades that are no pass."""
        golden = [golden_submission(problem, self.limits) for problem in problems if problem.golden is not None]
        return [grade for grade in self.grade(golden) if not grade.passed]

    def grade(self, items: Iterable[Submission]) -> Generator[Grade, None, None]:
        """Grade submissions; yields each grade as it is ready, in any order.

        Raises UserError for a problem without tests.
        """
        queue = Queue(iter(items))
        try:
            while True:
                for worker in self._idle():
                    task = None
                    while task is None and (new := queue.ready(self._busy())) is not None:
                        task = new if isinstance(new, Task) else Task(new, self._steps(new))
                        if task.job is None:
                            grade = self._advance(task, None)
                            if grade is not None:
                                yield grade
                            task = None if grade is not None or queue.put_off(task) else task
                    if task is None:
                        break
                    self._begin(worker, task, queue)
                if self._busy():
                    yield from self._collect(queue)
                elif queue.empty():
                    return
        finally:
            self._abandon()

    def _steps(self, submission: Submission) -> Generator[Job, Outcome, Grade]:
        problem = submission.problem
        known = self._plans.get(problem.id)
        if known is not None and known[0] == problem:
            plan = known[1]
        else:
            plan = yield from make_plan(problem, self.limits)
            if len(self._plans) >= PLANS_KEPT:
                self._plans.pop(next(iter(self._plans)))
            self._plans[problem.id] = (problem, plan)
            if isinstance(plan, WeakPlan):
                self._weak.add(problem.id)
        return (yield from grade_steps(plan, submission))

    def _advance(self, task: Task, outcome: Outcome | None) -> Grade | None:
        """Let a task take an outcome; its next job is then `task.job`. Returns the grade at its end.

        What a program left behind must not end the grading of the others, whatever we did not foresee in it; but more
        than a few such grades would pass a bug of ours off as the model's, and raise it.
        """
        try:
            task.job = task.steps.send(outcome) if outcome is not None else next(task.steps)
        except StopIteration as end:
            self._finished += 1
            grade: Grade = end.value
            return grade
        except UserError:
            raise
        except Exception as error:
            self._faults, self._finished = self._faults + 1, self._finished + 1
            if self._faults > max(FAULTS, FAULT_SHARE * self._finished):
                raise
            one = task.submission
            words = f"the grader could not read what it left: {type(error).__name__}: {error}"
            return Grade(one.problem.id, one.index, "error", words[:300], 0.0)
        return None

    def _idle(self) -> Sequence[_Worker]:
        return [worker for worker in self._workers if worker.task is None]

    def _busy(self) -> bool:
        return any(worker.task is not None for worker in self._workers)

    def _begin(self, worker: _Worker, task: Task, queue: Queue) -> None:
        assert task.job is not None
        try:
            if worker.sandbox is None:
                worker.sandbox = Sandbox(self.tier)
                self._selector.register(worker.sandbox.control, selectors.EVENT_READ, worker)
            worker.sandbox.begin(task.job)
            worker.task = task
        except SandboxError as error:
            self._fruitless_start(worker, str(error))
            queue.waiting.appendleft(task)

    def _fruitless_start(self, worker: _Worker, reason: str) -> None:
        self._drop_sandbox(worker)
        self._fruitless += 1
        if self._fruitless > FRUITLESS_STARTS:
            raise UserError(f"the sandbox ({self.tier}) does not start any more: {reason}.", next_step="Run it again.")

    def _collect(self, queue: Queue) -> Iterator[Grade]:
        """Wait for messages, move the tasks they concern on, and yield the grades that are done."""
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            sandbox = worker.sandbox
            outcome = sandbox.receive() if sandbox is not None else None
            if sandbox is None or outcome is None:
                continue
            task, worker.task = worker.task, None
            reason = sandbox.complaint() if outcome.lost and not sandbox.facts else ""
            if outcome.dirty:
                self._drop_sandbox(worker)
            if task is None:
                continue
            if reason:
                queue.waiting.appendleft(task)
                self._fruitless_start(worker, reason)
                continue
            if outcome.lost and task.losses == 0:
                task.losses += 1
                queue.alone.append(task)
                continue
            self._fruitless = 0
            grade = self._advance(task, outcome)
            if grade is not None:
                yield grade
            elif not queue.put_off(task):
                queue.waiting.appendleft(task)

    def _drop_sandbox(self, worker: _Worker) -> None:
        sandbox, worker.sandbox = worker.sandbox, None
        if sandbox is not None:
            self._selector.unregister(sandbox.control)
            sandbox.close()

    def _abandon(self) -> None:
        """Throw away the sandboxes of tasks that nobody waits for any more."""
        for worker in self._workers:
            if worker.task is not None:
                worker.task = None
                self._drop_sandbox(worker)
