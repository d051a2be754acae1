"""Our verdicts beside EvalPlus' own on the same programs, read by it from the files that we write.

Run by hand: `python tests/bench/evalplus_harness.py --evalplus FOLDER [--mutants N]`. FOLDER is where evalplus was put
with `pip install --target FOLDER --no-deps evalplus appdirs tempdir wget multipledispatch fire termcolor psutil tqdm
tree-sitter tree-sitter-python`. HumanEval+ itself is on no package index, so the problems are HumanEval's 164, brought
into its form: the calls that their tests make, the first half as `base_input` and the others as `plus_input`. The
programs are the golden solutions and mutants of them that differ in one place.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd_lite.grading.inside import plain
from ssd_lite.grading.plans import CallsPlan, ReplayPlan, make_plan
from ssd_lite.grading.tiers import choose_tier
from ssd_lite.problems.humaneval import load_humaneval
from ssd_lite.records import Limits, Problem

SWAPS: dict[type[ast.AST], Any] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or,
    ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_RUN = (
    "import sys, time; from evalplus.evaluate import evaluate; start = time.perf_counter(); "
    "evaluate('humaneval', samples=sys.argv[1], parallel=int(sys.argv[2]), i_just_wanna_run=True); "
    "print('seconds', time.perf_counter() - start)"
)


def calls_of(problems: list[Problem]) -> dict[str, list[list[Any]]]:
    """The arguments of every call that a problem's test makes of the golden solution, as this grader records them."""
    found = {}
    sandbox = choose_tier("auto")[1]
    try:
        for problem in problems:
            steps = make_plan(problem, Limits(cpu_s=20, wall_s=60))
            try:
                job = next(steps)
                while True:
                    job = steps.send(sandbox.run(job))
            except StopIteration as end:
                plan = end.value
            calls = plan.calls if isinstance(plan, ReplayPlan) else plan
            assert isinstance(calls, CallsPlan), problem.id
            found[problem.id] = [plain.decode(json.loads(line)[0]) for line in calls.case_lines]
    finally:
        sandbox.close()
    return found


def evalplus_row(problem: Problem, calls: list[list[Any]]) -> dict[str, Any]:
    """A row of HumanEval+'s JSON Lines."""
    prompt = str(problem.extra["prompt"])
    test = problem.test
    half = (len(calls) + 1) // 2
    return {
        "task_id": problem.id,
        "prompt": prompt,
        "contract": "",
        "canonical_solution": str(problem.golden).removeprefix(prompt),
        "entry_point": getattr(test, "entry_point", ""),
        "base_input": calls[:half],
        "plus_input": calls[half:] or calls[:1],
        "atol": 1e-4 if problem.id == "HumanEval/32" else 0,
    }


def mutants(program: str, draw: random.Random, most: int) -> Iterator[str]:
    """Programs that differ from this one in one operator, one number or one negated condition."""
    count = len([node for node in ast.walk(ast.parse(program)) if _places(node)])
    for number in draw.sample(range(count), min(most, count)):
        tree = ast.parse(program)
        _change([node for node in ast.walk(tree) if _places(node)][number])
        yield ast.unparse(ast.fix_missing_locations(tree))


def _places(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in SWAPS
    return isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS


def _change(node: ast.AST) -> None:
    if isinstance(node, ast.Constant):
        number: Any = node.value
        node.value = int(number) + 1
    elif isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()


def command(words: list[str], **environment: str) -> str:
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evalplus", required=True, help="folder evalplus was installed in")
    parser.add_argument("--mutants", type=int, default=4)
    options = parser.parse_args()
    problems, draw, cores = load_humaneval(), random.Random(0), len(os.sched_getaffinity(0))
    calls = calls_of(problems)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [evalplus_row(problem, calls[problem.id]) for problem in problems]
        (folder / "plus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with open(folder / "programs.jsonl", "w") as file:
            for problem in problems:
                golden = str(problem.golden)
                for index, program in enumerate([golden, *mutants(golden, draw, options.mutants)]):
                    file.write(json.dumps({"problem_id": problem.id, "index": index, "program": program}) + "\n")
        started = time.perf_counter()
        words = ["grade", str(folder / "programs.jsonl"), "--problems", f"evalplus:{folder / 'plus.jsonl'}"]
        files = ["--out", str(folder / "grades.jsonl"), "--evalplus", str(folder / "samples.jsonl")]
        command([sys.executable, "-m", "ssd_lite", *words, *files])
        seconds = time.perf_counter() - started
        theirs = command(
            [sys.executable, "-c", _RUN, str(folder / "samples.jsonl"), str(cores)],
            PYTHONPATH=options.evalplus, HUMANEVAL_OVERRIDE_PATH=str(folder / "plus.jsonl"), XDG_CACHE_HOME=name,
        )  # fmt: skip
        report(folder, seconds, float(theirs.rsplit("seconds", 1)[1]), cores)


def report(folder: Path, ours_s: float, theirs_s: float, cores: int) -> None:
    """Print how often both agree, and every program on which they do not."""
    grades = {}
    for line in (folder / "grades.jsonl").read_text().splitlines():
        grade = json.loads(line)
        grades[grade["problem_id"], grade["index"]] = grade["verdict"]
    both: Counter[tuple[str, str]] = Counter()
    for task, results in json.loads((folder / "samples_eval_results.json").read_text())["eval"].items():
        for index, result in enumerate(results):
            passed = result["base_status"] == result["plus_status"] == "pass"
            pair = (grades[task, index], "pass" if passed else f"{result['base_status']}/{result['plus_status']}")
            both[pair] += 1
            if (pair[0] == "pass") != passed:
                print(f"differ: {task} program {index}: ours {pair[0]}, EvalPlus {pair[1]}\n{result['solution']}\n")
    agreed = sum(count for (ours, theirs), count in both.items() if (ours == "pass") == (theirs == "pass"))
    print(f"{sum(both.values())} programs of 164 problems: {agreed} agree on pass or not; {dict(both.most_common())}")
    print(f"whole command, {cores} at once: ours {ours_s:.1f} s, EvalPlus {theirs_s:.1f} s")


if __name__ == "__main__":
    main()
