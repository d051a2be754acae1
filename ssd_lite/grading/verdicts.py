"""From what a child left behind to a verdict. Nothing here believes a program: a pass is only ever computed outside."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

from ssd_lite.grading.inside import plain, supervisor
from ssd_lite.grading.sandbox import Job, Outcome
from ssd_lite.records import Limits, Verdict

Finding = tuple[Verdict, str]
# Parts of a frame: ["v", index, tree], ["e", index, type, text], ["o", index].
_LENGTHS = {"v": 3, "e": 4, "o": 2}
# A value of the deepest kind has two brackets a level, in a frame.
_DEEPEST = 2 * plain.MAX_DEPTH + 8
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
MEDDLED = "the program wrote into the results"
LOST = "the program brought its sandbox down, twice"
_SIGNALS: dict[int, Finding] = {
    signal.SIGSYS: ("violation", "used a forbidden system call"),
    signal.SIGXFSZ: ("output_limit", "wrote more than the output limit"),
    signal.SIGXCPU: ("timeout", "used up its CPU time"),
    signal.SIGKILL: ("memory", "was killed by the system, most likely for memory"),
}


def violation(outcome: Outcome) -> Finding | None:
    """A forbidden system call, or a sandbox brought down: this comes before every other finding."""
    if outcome.lost:
        return "violation", LOST
    if os.WIFSIGNALED(outcome.status) and os.WTERMSIG(outcome.status) == signal.SIGSYS:
        return _SIGNALS[signal.SIGSYS]
    return None


def fault(outcome: Outcome, job: Job) -> Finding | None:
    """How the child ended, if not by itself with exit code 0; None for a clean end within the limits."""
    limits = job.limits
    if outcome.why == supervisor.KILLED_FOR_CPU:
        return "timeout", f"used more than {limits.cpu_s:g} s of CPU time"
    if outcome.why == supervisor.KILLED_FOR_WALL:
        return "timeout", f"took more than {limits.wall_s:g} s of wall time"
    if outcome.why == supervisor.KILLED_BY_ORDER:
        return "error", MEDDLED
    if os.WIFSIGNALED(outcome.status):
        return _by_signal(os.WTERMSIG(outcome.status), outcome.cpu_s, job)
    if outcome.output_bytes > limits.output_mib * (1 << 20):
        return "output_limit", f"wrote more than {limits.output_mib:g} MiB"
    if job.cases == 1 and outcome.cpu_s > limits.cpu_s:
        return "timeout", f"used more than {limits.cpu_s:g} s of CPU time"
    code = os.WEXITSTATUS(outcome.status)
    return ("error", f"ended with exit code {code}") if code else None


def _by_signal(number: int, cpu_s: float, job: Job) -> Finding:
    if number == signal.SIGKILL and cpu_s >= job.limits.cpu_s * job.cases:
        return "timeout", f"used more than {job.limits.cpu_s:g} s of CPU time"
    if number in _SIGNALS:
        return _SIGNALS[number]
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return "error", f"was killed by {name}"


def busy_machine(outcome: Outcome) -> bool:
    """Did only wall time run out, in a program that was computing? A busy machine may have caused it.

    Run it again alone.
    """
    return outcome.why == supervisor.KILLED_FOR_WALL and outcome.cpu_s > 0.05


def frames(results: bytes, most: int = 1 << 20, longest: int = 64 << 20) -> list[Any]:
    """The frames of a results file: one JSON list a line, `most` of them and each up to `longest` bytes.

    A torn, foreign or longer line, one nested deeper than any value, and one line too many end the list with `["?"]`.
    """
    found: list[Any] = []
    lines = results.split(b"\n", most + 1)
    for number, line in enumerate(lines):
        if not line and number == len(lines) - 1:
            return found
        frame = _frame(line) if number < most and len(line) <= longest else None
        if frame is None:
            break
        found.append(frame)
    return [*found, ["?"]]


def _frame(line: bytes) -> list[Any] | None:
    if line.count(b"[") + line.count(b"{") > _DEEPEST and _depth(line) > _DEEPEST:
        return None
    try:
        frame = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if type(frame) is not list or len(frame) < 2 or type(frame[1]) is not int:
        return None
    return frame if type(frame[0]) is str and len(frame) == _LENGTHS.get(frame[0]) else None


def _depth(line: bytes) -> int:
    """How deep the brackets of a line of JSON go, those in texts left out."""
    deepest = depth = 0
    for byte in _TEXT.sub(b"", line).translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def exception_finding(frame: list[Any], where: str) -> Finding:
    """The finding of an `["e", index, type, text]` frame."""
    name, text = (word(part) for part in (*frame[2:4], "", "")[:2])
    verdict: Verdict = "memory" if name == "MemoryError" else "error"
    return verdict, f"{where}: {name}{': ' if text else ''}{text}"


def too_large(limits: Limits) -> Finding:
    return "output_limit", f"a value larger than {limits.output_mib:g} MiB"


def word(part: Any, most: int = 120) -> str:
    """A program's text in one line of what can be printed; no terminal obeys it."""
    text = part[: 4 * most] if type(part) is str else "?"
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]
