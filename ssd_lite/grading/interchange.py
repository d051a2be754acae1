"""Files other harnesses read, so that they can check this grader: EvalPlus samples and LiveCodeBench custom output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_lite.errors import UserError
from ssd_lite.grading.steps import Submission


@dataclass(frozen=True)
class Interchange:
    """Files for other harnesses, None for none."""

    evalplus: Path | None = None
    livecodebench: Path | None = None

    def write(self, submissions: Sequence[Submission]) -> None:
        """Write those that are named. Raises UserError where one cannot be written."""
        if self.evalplus is not None:
            write_evalplus(submissions, self.evalplus)
        if self.livecodebench is not None:
            write_livecodebench(submissions, self.livecodebench)


def write_evalplus(submissions: Iterable[Submission], path: Path) -> int:
    """Write EvalPlus `samples.jsonl`: one `{"task_id", "solution"}` a line, by sample index. Returns the count.

    A completion without a program becomes an empty solution, so that it counts as wrong there too.
    """
    lines = [
        json.dumps({"task_id": item.problem.id, "solution": item.program or ""})
        for item in sorted(submissions, key=lambda item: item.index)
    ]
    _write(path, "".join(line + "\n" for line in lines))
    return len(lines)


def write_livecodebench(submissions: Iterable[Submission], path: Path) -> int:
    """Write LiveCodeBench custom output: a JSON list of `{"question_id", "code_list"}`, one entry a problem.

    Every problem must have the same number of samples, as that harness asks. Returns the number of problems.
    """
    programs: dict[str, dict[int, str]] = {}
    for item in submissions:
        programs.setdefault(item.problem.id, {})[item.index] = item.program or ""
    if len({len(samples) for samples in programs.values()}) > 1:
        raise UserError("LiveCodeBench's format needs the same number of samples for every problem.", where=str(path))
    entries = [
        {"question_id": problem, "code_list": [samples[index] for index in sorted(samples)]}
        for problem, samples in sorted(programs.items())
    ]
    _write(path, json.dumps(entries, indent=1) + "\n")
    return len(entries)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}.", where=str(path)) from None
