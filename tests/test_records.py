"""Records: what is written is read back equal, and a test object that is wrong says what is wrong."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from ssd_lite.journal import decode_line, encode_line
from ssd_lite.problem_tests import FunctionalTest, ScriptTest, StdinTest, Test, read_test, write_test
from ssd_lite.records import (
    Grade,
    Limits,
    Problem,
    Sample,
    SamplingSettings,
    grade_from_json,
    sample_from_json,
    to_json,
)

SAMPLE = Sample(
    problem_id="a/1 é",
    index=3,
    prompt_ids=(1, 2, 3),
    completion_ids=(4, 2),
    completion="x\u2028\ud7ff\n```",
    finish_reason="stop",
    entropy_nats=0.1 + 0.2,
    seed=2**63 - 1,
    settings=SamplingSettings(1.6, 20, 0.8, 0.0, 256),
    engine="hf",
    model_hash="0" * 64,
)
TESTS: list[Test] = [
    FunctionalTest("f", (([1, "a"], [1]), ([], None)), tolerance=1e-9),
    FunctionalTest("f", (([[]], None),), expected_from="golden"),
    StdinTest((("1\n", "2\n"), ("", ""))),
    ScriptTest("assert f(1) == 2", "import re", "f"),
]


def test_a_sample_goes_through_a_journal_unchanged() -> None:
    back = sample_from_json(decode_line(encode_line(to_json(SAMPLE))))
    assert back == SAMPLE
    assert isinstance(back.completion_ids, tuple)
    assert back.key == ("a/1 é", 3)


def test_a_grade_goes_through_a_journal_unchanged() -> None:
    grade = Grade("a", 1, "timeout", "6 s", 1.25)
    assert grade_from_json(decode_line(encode_line(to_json(grade)))) == grade
    assert not grade.passed
    assert Grade("a", 1, "pass").passed


def test_a_record_with_a_missing_field_is_no_record() -> None:
    value = to_json(SAMPLE)
    del value["seed"]
    with pytest.raises(KeyError, match="seed"):
        sample_from_json(value)


def test_records_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SAMPLE.index = 4  # type: ignore[misc]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.kind)
def test_a_test_is_read_back_as_it_was_written(test: Test) -> None:
    assert read_test(json.loads(json.dumps(write_test(test)))) == test


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "tests.kind"),
        ({"kind": "unit"}, "tests.kind"),
        ({"kind": "script", "code": " "}, "code"),
        ({"kind": "script", "code": "x", "cases": []}, "unknown key 'cases'"),
        ({"kind": "stdin", "cases": []}, "non-empty"),
        ({"kind": "stdin", "cases": [{"input": "1"}]}, "stdin case"),
        ({"kind": "stdin", "cases": [{"input": 1, "output": "1"}]}, "stdin case"),
        ({"kind": "functional", "cases": [[[1], 1]]}, "entry_point"),
        ({"kind": "functional", "entry_point": "f", "cases": []}, "non-empty"),
        ({"kind": "functional", "entry_point": "f", "cases": [[1, 1]]}, "args a list"),
        ({"kind": "functional", "entry_point": "f", "cases": [[[1]]]}, "args, expected"),
        ({"kind": "functional", "entry_point": "f", "cases": [[[1], 1]], "tolerance": -1}, "tolerance"),
        ({"kind": "functional", "entry_point": "f", "cases": [[[1], 1]], "tolerence": 1}, "unknown key 'tolerence'"),
        ({"kind": "functional", "entry_point": "f", "cases": [[[1], 1]], "expected_from": "x"}, "expected_from"),
    ],
)
def test_a_wrong_test_says_what_is_wrong(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_test(value)


@pytest.mark.parametrize("name", ["cpu_s", "wall_s", "memory_mib", "output_mib"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "2"])
def test_limits_are_positive_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


def test_statements_are_equal_if_only_white_space_differs() -> None:
    one = Problem("1", ({"role": "user", "content": " add\n two\tnumbers "},))
    two = Problem("2", ({"role": "user", "content": "add two numbers"},))
    other = Problem("3", ({"role": "user", "content": "Add two numbers"},))
    assert one.statement() == two.statement() != other.statement()
