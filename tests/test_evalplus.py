"""HumanEval+ and MBPP+ rows: expected values from the golden solution, tuples restored, looser tasks."""

import gzip
import json
import shutil

import pytest

from ssd_lite.errors import UserError
from ssd_lite.grading.grader import Grader, Submission
from ssd_lite.problem_tests import FunctionalTest, ScriptTest
from ssd_lite.problems.evalplus import load

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
HALF = {
    "task_id": "HumanEval/900",
    "prompt": "from typing import List\n\ndef half(xs: List[int]):\n    '''Half of each.'''\n",
    "entry_point": "half",
    "canonical_solution": "    return [x / 2 for x in xs]\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[[]], [[7, -3]]],
    "atol": 0,
}
PAIRS = {
    "task_id": "Mbpp/2",
    "prompt": '"""Shared elements of two tuples."""\n',
    "entry_point": "similar_elements",
    "canonical_solution": "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
    "base_input": [[[3, 4, 5], [5, 4]]],
    "plus_input": [[[1], [2]]],
    "atol": 0,
}
ROOT = {
    "task_id": "HumanEval/32",
    "prompt": "def find_zero(xs):\n    '''A root.'''\n",
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "base_input": [[[1, 2]]],
    "plus_input": [],
    "atol": 1e-4,
}


def file(tmp_path, *rows):
    path = tmp_path / "plus.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def test_rows_become_tests(tmp_path):
    half, pairs, root = load(file(tmp_path, HALF, PAIRS, ROOT))
    assert isinstance(half.test, FunctionalTest)
    assert half.test.expected_from == "golden"
    assert [case[0] for case in half.test.cases] == [[[1, 2]], [[]], [[7, -3]]]
    assert half.prelude == "from typing import List"
    assert isinstance(pairs.test, ScriptTest)
    assert "(3, 4, 5)" in pairs.test.code
    assert isinstance(root.test, ScriptTest)


@needs_bubblewrap
def test_golden_and_other_programs(tmp_path):
    half, pairs, root = load(file(tmp_path, HALF, PAIRS, ROOT))
    programs = [
        (half, "def half(xs: List[int]):\n    return [x * 0.5 + 1e-9 for x in xs]\n", "pass"),
        (half, "def half(xs):\n    return tuple(x / 2 for x in xs)\n", "wrong_answer"),
        (half, "def half(xs):\n    return xs\n", "wrong_answer"),
        (pairs, "def similar_elements(a, b):\n    return [x for x in b if x in a]\n", "pass"),
        (pairs, "def similar_elements(a, b):\n    return a\n", "wrong_answer"),
        (root, "def find_zero(xs):\n    return -0.5 + 1e-6\n", "pass"),
        (root, "def find_zero(xs):\n    return 0.5\n", "wrong_answer"),
    ]
    with Grader("bubblewrap") as grader:
        assert grader.verify_golden([half, pairs, root]) == []
        rows = [Submission(problem, n, program) for n, (problem, program, _) in enumerate(programs)]
        verdicts = {grade.index: grade.verdict for grade in grader.grade(rows)}
        weak = grader.describe()["weak_problems"]
    assert [verdicts[n] for n in range(len(programs))] == [wanted for _, _, wanted in programs]
    assert weak == []


@pytest.mark.parametrize("bad", ["{", "[]", '{"task_id": "HumanEval/1"}'])
def test_a_bad_line_is_named(tmp_path, bad):
    path = tmp_path / "plus.jsonl"
    path.write_text(json.dumps(HALF) + "\n" + bad + "\n")
    with pytest.raises(UserError, match=r"plus\.jsonl:2"):
        load(path)
