"""The starter set: its size, that its golden programs pass and wrong ones fail, and that no task is in both halves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.grading.grader import Grader
from ssd_lite.problem_tests import FunctionalTest, StdinTest
from ssd_lite.problems.overlap import refuse_overlap, remove_duplicates
from ssd_lite.problems.starter import load_starter
from ssd_lite.records import Problem
from ssd_lite.stages.grade import check_golden

EVALUATION = load_starter("evaluate")
TRAINING = load_starter("train")
# Functions of one or two truth values: their tests hold every input there is.
FEWER_INPUTS = {"train/either": 4, "train/opposite": 2}
# Of the training prompts as they were first sampled; samples of other prompts cannot be compared with those.
PROMPTS_SHA256 = "194c66bde82e458ce5ed6e42c39390d4db234d416b2c94171fd5f634af97cc2b"


def passes(test: Any, program: str, golden: str) -> bool:
    """Run a program of this project's own making (trusted) on all cases."""
    if isinstance(test, FunctionalTest):
        values = returned(program, test)
        wanted = returned(golden, test) if test.expected_from == "golden" else [case[1] for case in test.cases]
        return all(same(value, expected) for value, expected in zip(values, wanted, strict=True))
    assert isinstance(test, StdinTest)
    return all(run(program, text).split() == output.split() for text, output in test.cases)


def returned(program: str, test: FunctionalTest) -> list[Any]:
    names: dict[str, Any] = {}
    exec(program, names)
    function: Callable[..., Any] = names[test.entry_point]
    return [function(*json.loads(json.dumps(args))) for args, _ in test.cases]


def same(value: Any, expected: Any) -> bool:
    return type(value) is type(expected) and value == expected


def run(program: str, text: str) -> str:
    stdin, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, {"__name__": "__main__"})
    finally:
        sys.stdin = stdin
    return out.getvalue()


def task(problem: Problem) -> str:
    """The sentence of the prompt that says what to do, without names and the request around it."""
    text = problem.messages[0]["content"]
    for pattern in (r'"""Return (.*)\."""', r"# The answer is (.*)\.\n", r"Python program that (.*)\. Use input"):
        if found := re.search(pattern, text):
            return found[1]
    raise AssertionError(text)


def test_sizes_kinds_and_tiers() -> None:
    assert len(TRAINING) >= 150
    assert len(EVALUATION) >= 80
    for problems in (TRAINING, EVALUATION):
        assert {type(problem.test) for problem in problems} == {FunctionalTest, StdinTest}
        tiers = Counter(problem.difficulty for problem in problems)
        assert set(tiers) == {"easy", "medium", "hard"}
        assert min(tiers.values()) >= 15


@pytest.mark.parametrize("problem", [*EVALUATION, *TRAINING], ids=lambda problem: problem.id)
def test_golden_passes_and_constant_programs_fail(problem: Problem) -> None:
    assert isinstance(problem.test, FunctionalTest | StdinTest)
    assert problem.golden is not None
    assert len(problem.test.cases) >= FEWER_INPUTS.get(problem.id, 6)
    assert passes(problem.test, problem.golden, problem.golden)
    for constant in ("None", "True", "False", "0", "''", "[]", "-1"):
        if isinstance(problem.test, FunctionalTest):
            wrong = f"def {problem.test.entry_point}(*args): return {constant}"
        else:
            wrong = f"print({constant})"
        assert not passes(problem.test, wrong, problem.golden), constant
    if isinstance(problem.test, FunctionalTest):
        wrong = f"def {problem.test.entry_point}(*args): return args[0]"
        assert not passes(problem.test, wrong, problem.golden)
        assert f"def {problem.test.entry_point}(" in problem.messages[0]["content"]


@pytest.mark.slow
def test_all_golden_programs_pass_the_real_grader() -> None:
    with Grader() as grader:
        assert check_golden(grader, TRAINING) == "177 of 177 problems have a golden solution, and each passes"
        assert grader.describe()["weak_problems"] == []


def test_the_training_prompts_are_those_that_were_sampled_before() -> None:
    rows = [[problem.id, problem.messages[0]["content"]] for problem in TRAINING]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == PROMPTS_SHA256


def test_no_task_is_in_both_halves_even_in_other_words() -> None:
    refuse_overlap(TRAINING, EVALUATION)
    assert remove_duplicates(TRAINING)[1] == remove_duplicates(EVALUATION)[1] == []
    close = []
    for one in TRAINING:
        for other in EVALUATION:
            a, b = task(one), task(other)
            words = set(a.lower().split()), set(b.lower().split())
            shared = len(words[0] & words[1]) / len(words[0] | words[1])
            if shared > 0.6 and SequenceMatcher(None, a, b).ratio() > 0.75:
                close.append((one.id, other.id))
    assert close == []


def test_no_statement_is_an_mbpp_item() -> None:
    mbpp = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbpp.jsonl"
    if not mbpp.is_file():
        pytest.skip("shared/data/mbpp.jsonl is not here")
    texts = {frozenset(json.loads(line)["text"].lower().split()) for line in mbpp.read_text("utf-8").splitlines()}
    for problem in (*TRAINING, *EVALUATION):
        wanted = set(task(problem).lower().split())
        assert not any(len(wanted & text) > 0.75 * len(wanted | text) for text in texts), problem.id
