"""Rows of programs with the verdict a right grader gives, graded in a tier; run as a script inside an outer sandbox."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ssd_lite.grading.grader import Grader, Submission
from ssd_lite.problem_tests import FunctionalTest, StdinTest
from ssd_lite.problems.jsonl import read_problem
from ssd_lite.records import Problem

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "adversarial.jsonl"
SECRET = {"SSD_LITE_TEST_SECRET": "s3cret"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def problem(row: dict[str, Any]) -> Problem:
    tests = row["tests"]
    if "kind" in tests:  # the tests as a problem file has them
        keys = ("id", "tests", "golden", "limits")
        return read_problem({"prompt": "-", **{key: row[key] for key in keys if key in row}}, row["id"])
    if row["kind"] == "stdin":
        return Problem(row["id"], (), StdinTest(tuple((case["input"], case["output"]) for case in tests)))
    cases = tuple((arguments, expected) for arguments, expected in tests["cases"])
    return Problem(row["id"], (), FunctionalTest(tests["entry_point"], cases, tests.get("tol")))


def wrong(found: list[dict[str, Any]], tier: str) -> list[str]:
    """Grade rows in a tier; what differs from the verdicts they want, and the traces they left."""
    os.environ.update(SECRET)
    with Grader(tier) as grader:
        assert grader.tier == tier
        submissions = [Submission(problem(row), 0, row["program"]) for row in found]
        grades = {grade.problem_id: grade for grade in grader.grade(submissions)}
        # CPU seconds stretch on a machine that others use (a program that fills its memory took twice as many): a row
        # that should have had time enough is graded once more.
        slow = [
            submission
            for row, submission in zip(found, submissions, strict=True)
            if grades[row["id"]].verdict == "timeout" != row["expected_verdict"]
        ]
        grades |= {grade.problem_id: grade for grade in grader.grade(slow)}
    bad = []
    for row in found:
        grade = grades[row["id"]]
        if grade.verdict not in (row["expected_verdict"], *(row.get("accept") or [])):
            bad.append(f"{row['id']}: {grade.verdict} ({grade.detail}), not {row['expected_verdict']}")
        bad += [f"{row['id']} left {path}" for path in row.get("must_not_exist") or [] if os.path.exists(path)]
    return bad


if __name__ == "__main__":
    print(json.dumps(wrong(rows(Path(sys.argv[1])), sys.argv[2])))
