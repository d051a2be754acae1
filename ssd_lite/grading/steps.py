"""The way of one submission: which jobs it needs, and the verdict from what they left.

A pass needs every test, and one.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Generator
from dataclasses import dataclass

from ssd_lite.grading import verdicts
from ssd_lite.grading.answers import judge
from ssd_lite.grading.compare import same, same_output
from ssd_lite.grading.inside import plain
from ssd_lite.grading.plans import (
    AnswerPlan,
    CallsPlan,
    NoPlan,
    Plan,
    ReplayPlan,
    StdinPlan,
    WeakPlan,
    answers,
    golden_limits,
    replay_job,
    replayed,
    with_program,
)
from ssd_lite.grading.sandbox import Job, Outcome
from ssd_lite.records import Grade, Limits, Problem

WEAK = "weak check"
SHORT = 2000  # characters of JSON
PASS: verdicts.Finding = ("pass", "")


@dataclass(frozen=True)
class Submission:
    """One program to grade, None where the completion had none; the words to judge where the test is an answer."""

    problem: Problem
    index: int
    program: str | None


Finding = Generator[Job, Outcome, verdicts.Finding]


class Stopwatch:
    """Adds up the CPU seconds of a submission's jobs, and runs a job again, alone, when only the wall clock beat it."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    def run(self, job: Job) -> Generator[Job, Outcome, Outcome]:
        outcome = yield job
        if verdicts.busy_machine(outcome):
            outcome = yield dataclasses.replace(job, alone=True)
        self.cpu_s += outcome.cpu_s
        return outcome


def grade_steps(plan: Plan, submission: Submission) -> Generator[Job, Outcome, Grade]:
    """Yield the jobs of a submission, take their outcomes, return its grade."""
    watch = Stopwatch()
    program = submission.program
    finding: verdicts.Finding
    if isinstance(plan, AnswerPlan):
        finding = judge(program or "", plan.answer)
    elif isinstance(plan, NoPlan):
        finding = ("error", plan.why)
    elif program is None:
        finding = ("no_code", "the completion holds no fenced block")
    else:
        match plan:
            case CallsPlan():
                finding = yield from _calls(plan, program, watch)
            case StdinPlan():
                finding = yield from _stdin(plan, program, watch)
            case ReplayPlan():
                finding = yield from _replay(plan, program, watch)
            case WeakPlan():
                finding = yield from _weak(plan, program, watch)
    verdict, detail = finding
    return Grade(submission.problem.id, submission.index, verdict, detail[:300], round(watch.cpu_s, 4))


def _calls(plan: CallsPlan, program: str, watch: Stopwatch) -> Finding:
    for first, last in plan.batches():
        job = dataclasses.replace(plan.job(program, first, last), stop_early=_Mismatch(plan, first, last))
        outcome = yield from watch.run(job)
        finding = _judge_calls(plan, first, job, outcome)
        if finding is not PASS:
            return finding
    return PASS if plan.expected else ("error", "the problem has no test cases")


def _judge_calls(plan: CallsPlan, first: int, job: Job, outcome: Outcome) -> verdicts.Finding:
    values, finding = answers(outcome, job)
    if verdicts.violation(outcome):
        return verdicts.violation(outcome) or PASS
    for number, value in enumerate(values):
        case = first + number
        if value[0] == "e":
            return verdicts.exception_finding(["e", number, *value[1:]], f"case {case + 1}")
        if not same(value[1], plan.expected[case], tolerance=plan.tolerance, strict=plan.strict):
            return "wrong_answer", f"case {case + 1}: {_what(value[1])}"
    return finding or PASS


class _Mismatch:
    """Reads the results of a running child from `offset`, where it stopped.

    True once a value is wrong, the results are broken, or more comes than was asked for.
    """

    def __init__(self, plan: CallsPlan, first: int, last: int) -> None:
        self._plan, self._next, self._last, self.offset = plan, first, last, 0
        self._ended = False

    def __call__(self, results: bytes) -> bool:
        end = results.rfind(b"\n") + 1
        if not end:
            return False
        self.offset += end
        for frame in verdicts.frames(results[:end], self._last - self._next + 1):
            if frame[0] == "?" or self._ended or self._next >= self._last:
                return True
            if frame[0] != "v":
                self._ended = True  # an exception, or a value too large: the child ends by itself
                continue
            expected = self._plan.expected[self._next]
            if not same(frame[2], expected, tolerance=self._plan.tolerance, strict=self._plan.strict):
                return True
            self._next += 1
        return False


def _what(tree: object) -> str:
    """A short text of a wrong value."""
    if isinstance(tree, dict) and "o" in tree:
        return f"an object of type {verdicts.word(tree['o'], 60)} is not plain data"
    text = json.dumps(tree)
    try:
        # Only a short one is built: a set of many colliding values would take for ever.
        text = repr(plain.decode(tree)) if len(text) < SHORT else text
    except (ValueError, RecursionError):
        return "another value"
    return f"got {verdicts.word(text, 80)}" + ("…" if len(text) > 80 else "")


def _stdin(plan: StdinPlan, program: str, watch: Stopwatch) -> Finding:
    for case, (_, expected) in enumerate(plan.cases):
        job = plan.job(program, case)
        outcome = yield from watch.run(job)
        finding = verdicts.violation(outcome) or _exception(outcome, case) or verdicts.fault(outcome, job)
        if finding is not None:
            return finding
        if not same_output(outcome.output, expected):
            text = " ".join(outcome.output[:400].decode("utf-8", "replace").split())
            return "wrong_answer", f"test {case + 1}: printed {text[:80]!r}"
    return PASS if plan.cases else ("error", "the problem has no test cases")


def _exception(outcome: Outcome, case: int) -> verdicts.Finding | None:
    """The exception that ended a script with an exit code; the frame only names it."""
    if outcome.why or outcome.status != 1 << 8:
        return None
    for frame in verdicts.frames(outcome.results)[:1]:
        if frame[0] == "e":
            return verdicts.exception_finding(frame, f"test {case + 1}")
    return None


def _replay(plan: ReplayPlan, program: str, watch: Stopwatch) -> Finding:
    job = plan.calls.job(program, 0, len(plan.calls.case_lines))
    outcome = yield from watch.run(job)
    values, finding = answers(outcome, job)
    if finding is not None:
        return finding
    for number, value in enumerate(values):
        if value[0] == "v" and isinstance(value[1], dict) and "o" in value[1]:
            return "wrong_answer", f"call {number + 1}: {_what(value[1])}"
    replay = yield replay_job(plan, values)
    said = replayed(replay)
    if said == "pass":
        return PASS
    if values and values[-1][0] == "e":
        return verdicts.exception_finding(["e", 0, *values[-1][1:]], f"call {len(values)}")
    return "wrong_answer", "the test's asserts fail on the program's values"


def _weak(plan: WeakPlan, program: str, watch: Stopwatch) -> Finding:
    nonce = secrets.token_hex(16)
    fields = {**plan.request, "job": "script", "nonce": nonce}
    job = Job(with_program(json.dumps(fields).encode("ascii"), program, b"[]"), plan.limits)
    outcome = yield from watch.run(job)
    finding = verdicts.violation(outcome)
    found = verdicts.frames(outcome.results)
    if finding is None and found and found[0][0] == "e":
        stage = "while loading" if found[0][1] == -1 else "in the test"
        finding = verdicts.exception_finding(found[0], stage)
        if stage == "in the test" and found[0][2] == "AssertionError":
            finding = ("wrong_answer", "the test's asserts fail")
    finding = finding or verdicts.fault(outcome, job)
    if finding is None and (len(found) != 1 or found[0] != ["v", 0, nonce]):
        finding = ("error", "ended before the test did")
    verdict, detail = finding or PASS
    return verdict, f"{WEAK}: {detail or plan.why}"


def golden_submission(problem: Problem, limits: Limits) -> Submission:
    """A problem's golden solution as a submission, with five times the time; `limits` where the problem has none."""
    room = golden_limits(problem.limits or limits)
    return Submission(dataclasses.replace(problem, limits=room), 0, problem.golden)
