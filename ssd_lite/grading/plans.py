"""How each problem is graded.

Its tests turned once into jobs, with expected values kept on this side of the sandbox.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.grading import verdicts
from ssd_lite.grading.inside import plain, program
from ssd_lite.grading.plain_asserts import plain_asserts
from ssd_lite.grading.sandbox import Job, Outcome
from ssd_lite.problem_tests import AnswerTest, FunctionalTest, ScriptTest, StdinTest
from ssd_lite.records import Limits, Problem


@dataclass(frozen=True)
class CallsPlan:
    """Call a function on each case, compare the values. `strict` tells tuples from lists."""

    request: bytes
    case_lines: tuple[bytes, ...]
    expected: tuple[Any, ...]
    tolerance: float | None
    strict: bool
    limits: Limits
    sizes: tuple[int, ...]

    def job(self, program: str, first: int, last: int) -> Job:
        cases = b"[" + b",".join(self.case_lines[first:last]) + b"]"
        return Job(with_program(self.request, program, cases), self.limits, cases=last - first)

    def batches(self) -> list[tuple[int, int]]:
        """Ranges of cases whose expected values fit one child's results file; nearly always one."""
        room, first, used, ranges = self.limits.output_mib * (1 << 20), 0, 0, []
        for case, size in enumerate(self.sizes):
            if used + size > room and case > first:
                ranges.append((first, case))
                first, used = case, 0
            used += size
        return [*ranges, (first, len(self.sizes))] if self.sizes else []


@dataclass(frozen=True)
class StdinPlan:
    """Run the program as a script on each input, compare the outputs."""

    request: bytes
    cases: tuple[tuple[bytes, str], ...]
    limits: Limits

    def job(self, program: str, case: int) -> Job:
        return Job(with_program(self.request, program, b"[]"), self.limits, stdin=self.cases[case][0])


@dataclass(frozen=True)
class ReplayPlan:
    """Get the program's values for recorded calls, then run the test code on those values, without the program."""

    calls: CallsPlan
    replay: dict[str, Any]


@dataclass(frozen=True)
class WeakPlan:
    """Run test code and program in one process of the sandbox: `why` says what forbids a better way."""

    request: dict[str, Any]
    limits: Limits
    why: str


@dataclass(frozen=True)
class AnswerPlan:
    """Compare the completion's words with the answer: no program, no job."""

    answer: str


@dataclass(frozen=True)
class NoPlan:
    """A test that no program could fail: `why` is the detail of its grades, which are errors."""

    why: str


Plan = NoPlan | CallsPlan | StdinPlan | ReplayPlan | WeakPlan | AnswerPlan
Planning = Generator[Job, Outcome, Plan]


def with_program(request: bytes, program: str, cases: bytes) -> bytes:
    """A request's JSON with the program and the cases put in."""
    return request[:-1] + b',"program":' + json.dumps(program).encode("ascii") + b',"cases":' + cases + b"}"


def make_plan(problem: Problem, limits: Limits) -> Planning:
    """Turn a problem's tests into a plan; yields the jobs that takes. Raises UserError for a problem without tests."""
    limits = problem.limits or limits
    before = [problem.prelude] if problem.prelude else []
    match problem.test:
        case FunctionalTest():
            return (yield from _functional(problem, problem.test, before, limits))
        case StdinTest(cases=cases):
            request = _request("stdin", before=before, prelude=True)
            return StdinPlan(request, tuple((_bytes(text), output) for text, output in cases), limits)
        case ScriptTest():
            return (yield from _script(problem, problem.test, before, limits))
        case AnswerTest(answer=answer):
            return AnswerPlan(answer)
        case _:
            raise UserError("the problem has no tests.", where=problem.id, next_step="Grade a set with tests.")


def _request(job: str, **fields: Any) -> bytes:
    return json.dumps({"job": job, **fields}).encode("ascii")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _functional(problem: Problem, test: FunctionalTest, before: list[str], limits: Limits) -> Planning:
    arguments = [plain.encode([list(args), {}]) for args, _ in test.cases]
    request = _request("calls", before=before, prelude=test.expected_from == "cases", entry=test.entry_point)
    plan = calls_plan(request, arguments, [expected for _, expected in test.cases], limits)
    plan = dataclasses.replace(plan, tolerance=test.tolerance)
    if test.expected_from != "golden":
        return plan
    if problem.golden is None:
        raise UserError("the expected values come from a golden solution, and there is none.", where=problem.id)
    job = dataclasses.replace(plan.job(problem.golden, 0, len(arguments)), limits=golden_limits(limits))
    outcome = yield job
    values, finding = answers(outcome, job)
    if finding is not None or len(values) != len(arguments) or any(value[0] != "v" for value in values):
        reason = finding[1] if finding else "it fails on one of the inputs"
        raise UserError(f"the golden solution gives no expected values: {reason}.", where=problem.id)
    return dataclasses.replace(plan, expected=tuple(plain.decode(value[1]) for value in values), strict=True)


def golden_limits(limits: Limits) -> Limits:
    """Room for a golden solution while expected values are recorded: five times the CPU and wall time."""
    return dataclasses.replace(limits, cpu_s=5 * limits.cpu_s, wall_s=5 * limits.wall_s)


def calls_plan(request: bytes, arguments: list[Any], expected: list[Any], limits: Limits) -> CallsPlan:
    lines = tuple(json.dumps(tree, separators=(",", ":")).encode("ascii") for tree in arguments)
    return CallsPlan(request, lines, tuple(expected), None, False, limits, tuple(map(_size, expected)))


def _size(value: Any) -> int:
    return len(json.dumps(plain.encode(value))) if isinstance(value, list | tuple | dict | set | str) else 24


def answers(outcome: Outcome, job: Job) -> tuple[list[list[Any]], verdicts.Finding | None]:
    """The program's answers in call order, `["v", tree]` or a last `["e", type, text]`, and a finding that ends it."""
    finding = verdicts.violation(outcome)
    if finding is not None:
        return [], finding
    found: list[list[Any]] = []
    longest = program.WIDEST * int(job.limits.output_mib * (1 << 20)) + 100
    for number, frame in enumerate(verdicts.frames(outcome.results, job.cases, longest)):
        if frame[0] == "o":
            return [], verdicts.too_large(job.limits)
        if frame[0] == "?" or frame[1] not in (number, -1) or number >= job.cases:
            return [], verdicts.fault(outcome, job) or ("error", verdicts.MEDDLED)
        if frame[0] == "e":
            if frame[1] == -1:
                return [], verdicts.exception_finding(frame, "while loading")
            return [*found, ["e", *frame[2:4]]], None
        found.append(["v", frame[2] if len(frame) > 2 else None])
    return found, verdicts.fault(outcome, job) or (None if len(found) == job.cases else ("error", "ended too early"))


def _script(problem: Problem, test: ScriptTest, before: list[str], limits: Limits) -> Planning:
    setup = [test.setup] if test.setup.strip() else []
    before = [*before, *setup]
    if not any(word in test.code for word in ("assert", "raise")):
        return NoPlan("the problem's test asserts nothing")
    entry = test.entry_point
    request = _request("calls", before=before, prelude=False, entry=entry)
    cases = plain_asserts(test.code, entry) if entry and not setup else None
    if cases:
        arguments = [plain.encode([args, {}]) for args, _ in cases]
        plan = calls_plan(request, arguments, [expected for _, expected in cases], limits)
        return dataclasses.replace(plan, strict=True)
    fields = {"before": before, "prelude": False, "entry": entry, "code": test.code, "after": setup}
    weak = WeakPlan(fields, limits, "no golden solution or entry point to record the test's calls with")
    if problem.golden is None or not entry:
        return weak
    fields["golden"] = problem.golden
    recording = Job(_request("record", **fields), golden_limits(limits))
    outcome = yield recording
    calls = _recorded(outcome)
    if calls is None:
        return dataclasses.replace(weak, why="the test's calls cannot be recorded as plain data")
    plan = dataclasses.replace(calls_plan(request, calls, [], limits), limits=limits)
    job = dataclasses.replace(plan.job(problem.golden, 0, len(calls)), limits=golden_limits(limits))
    outcome = yield job
    values, finding = answers(outcome, job)
    replay = {**fields, "calls": calls}
    if finding is None:
        outcome = yield Job(_request("replay", **replay, answers=values), golden_limits(limits))
        if replayed(outcome) == "pass":
            return ReplayPlan(plan, replay)
    return dataclasses.replace(weak, why="the golden solution's values do not replay the test")


def _recorded(outcome: Outcome) -> list[Any] | None:
    """The argument trees of a recording; None where the test failed, made no call, or passed something not plain."""
    if verdicts.violation(outcome) or outcome.why or outcome.status:
        return None
    found = verdicts.frames(outcome.results)
    if len(found) < 2 or any(frame[0] != "v" for frame in found) or found[-1][2] != "end":
        return None
    trees = [frame[2] for frame in found[:-1]]
    return None if any('{"o":' in json.dumps(tree, separators=(",", ":")) for tree in trees) else trees


def replayed(outcome: Outcome) -> str:
    """What a replay said: pass, wrong, diverged, or "" where it broke."""
    found = verdicts.frames(outcome.results)
    if outcome.status or outcome.lost or len(found) != 1 or found[0][0] != "v":
        return ""
    return str(found[0][2])


def replay_job(plan: ReplayPlan, values: list[list[Any]]) -> Job:
    """The job that runs the test code on a program's values."""
    return Job(_request("replay", **plan.replay, answers=values), golden_limits(plan.calls.limits))
