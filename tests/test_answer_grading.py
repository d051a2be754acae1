"""Answers in words: where the final answer stands, when two numbers are one, and grading them without a sandbox."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ssd_lite.errors import UserError
from ssd_lite.grading import submissions
from ssd_lite.grading.answers import final_number, folded, judge, number_of
from ssd_lite.grading.grader import Grader
from ssd_lite.grading.submissions import AnswerGrader, open_grader, submission
from ssd_lite.problem_tests import AnswerTest, ScriptTest, read_test, write_test
from ssd_lite.records import Problem

QUESTION = Problem("q", ({"role": "user", "content": "How many?"},), AnswerTest("72"))
PROGRAM = Problem("p", ({"role": "user", "content": "Write f."},), ScriptTest("assert f() == 1\n"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("1,234,567.50", Fraction("1234567.5")),
        ("$1,234.00", 1234),
        ("-$5", -5),
        ("$-5", -5),
        ("\\$5", 5),
        ("50%", 50),
        ("50 \\%", 50),
        ("3/4", Fraction(3, 4)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("\N{MINUS SIGN}7", -7),
        ("0.10", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("1e3", 1000),
        ("1{,}000", 1000),
        ("€ 12", 12),
        ("72.", 72),
        ("72 clips", None),
        ("3/0", None),
        ("1,23", None),
        ("x", None),
        ("", None),
        ("1e999999999", None),
        ("9" * 100_000, None),
    ],
)
def test_a_number_is_read_exactly(text: str, value: Fraction | int | None) -> None:
    assert number_of(text) == value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("She sold 48 + 24 = 72.\n#### 72", 72),
        ("#### 72 clips\nI hope that helps, 100 %.", 72),
        ("**#### $1,234.50**", Fraction("1234.5")),
        ("#### 3. Add the totals\n48 + 24\n\nThe answer is 72.", 72),
        ("#### Step 2\nWe get \\boxed{72}, not 71.", 72),
        ("first \\boxed{5}, then \\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("\\boxed{x = 72\\text{ cm}} and 3 more", 72),
        ("\\boxed{72} and \\boxed{7", 72),
        ("The answer is 5. Wait, the final answer is: **72** clips, of 100.", 72),
        ("Answer: 48 + 24 = 72", 72),
        ("Answer: unclear.\nPerhaps 72 clips in 2 months", 2),
        ("10-5 leaves 5", 5),
        ("x2 has no number", None),
        ("nothing at all", None),
    ],
)
def test_the_final_number_is_the_surest_one(completion: str, expected: Fraction | int | None) -> None:
    assert final_number(completion) == expected


def test_percent_and_currency_are_units_and_nothing_is_rounded() -> None:
    assert judge("#### 50%", "50")[0] == "pass"
    assert judge("#### 0.5", "50%")[0] == "wrong_answer"
    assert judge("#### 0.3333", "1/3") == ("wrong_answer", "answered 3333/10000, expected 1/3")
    assert judge("#### 2/6", "1/3")[0] == "pass"


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("It is the capital.\n#### paris", "pass"),
        ("\\boxed{\\text{Paris}}", "pass"),
        ('The answer is "PARIS". Lyon is another town.', "pass"),
        ("Well.\n\n**Paris.**\n", "pass"),
        ("Paris is not the answer\nLyon", "wrong_answer"),
        (" \n", "no_answer"),
    ],
)
def test_words_are_compared_without_case_and_dress(completion: str, verdict: str) -> None:
    assert judge(completion, "Paris")[0] == verdict


def test_inner_white_space_is_folded_and_a_choice_may_stand_in_brackets() -> None:
    assert folded("New \n  York") == folded("new york")
    assert judge("The answer is (B).", "b")[0] == "pass"
    assert judge("#### ab", "a b")[0] == "wrong_answer"


def test_an_answer_test_is_read_and_written() -> None:
    test = read_test({"kind": "answer", "answer": "72"})
    assert test == AnswerTest("72")
    assert read_test(write_test(test)) == test
    for broken in ({"kind": "answer"}, {"kind": "answer", "answer": " "}, {"kind": "answer", "answer": 72}):
        with pytest.raises(ValueError, match="non-empty string `answer`"):
            read_test(broken)


def test_thinking_is_no_answer() -> None:
    thought = "<think>first 5\n#### 5</think>\n#### 72"
    assert submission(QUESTION, 0, thought, block="last").program == "\n#### 72"
    cut_off = submission(QUESTION, 0, "so it is 72, I thi", block="last", opened_thinking=True)
    (grade,) = AnswerGrader().grade([cut_off])
    assert (grade.verdict, grade.passed) == ("no_answer", False)


def test_answers_are_graded_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sandbox(*_: object) -> None:
        raise AssertionError("a sandbox was started")

    monkeypatch.setattr(submissions, "Grader", no_sandbox)
    with open_grader("auto", [QUESTION]) as grader:
        items = [submission(QUESTION, i, text, block="last") for i, text in enumerate(("#### 72", "71", "?"))]
        assert [grade.verdict for grade in grader.grade(items)] == ["pass", "wrong_answer", "no_answer"]
        assert grader.describe()["tier"] == grader.tier == "no programs"
        with pytest.raises(UserError, match="no sandbox is open"):
            list(grader.grade([submission(PROGRAM, 0, "```\nx\n```", block="last")]))
    with pytest.raises(AssertionError, match="a sandbox was started"), open_grader("auto", [QUESTION, PROGRAM]):
        pass


def test_a_set_of_programs_and_answers_is_graded_in_one_go() -> None:
    right = submission(PROGRAM, 0, "```python\ndef f():\n    return 1\n```", block="last")
    with Grader("auto", workers=1) as grader:
        grades = {
            (grade.problem_id, grade.index): grade.verdict
            for grade in grader.grade([right, *(submission(QUESTION, i, t, block="last") for i, t in enumerate("72"))])
        }
    assert grades == {("p", 0): "pass", ("q", 0): "wrong_answer", ("q", 1): "wrong_answer"}


def test_a_long_tail_behind_a_number_is_read_once() -> None:
    """Tried from each of its signs again, this would not end for minutes."""
    assert judge("#### 5 a" + "_" * 40_000 + "?", "5")[0] in ("pass", "wrong_answer", "no_answer")
