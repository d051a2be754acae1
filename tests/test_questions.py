"""Questions with answers: GSM8K's form, other forms, what is refused, and how the set is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import AnswerTest
from ssd_lite.problems.named import load_problems
from ssd_lite.problems.questions import REQUEST, load_questions
from ssd_lite.stages.grade import grade_file

GSM8K = {"question": "How many clips? ", "answer": "She sold 48/2 = <<48/2=24>>24.\n48+24 = 72.\n#### 72"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_value_is_behind_the_last_mark_or_the_whole_answer(tmp_path: Path) -> None:
    rows = [
        GSM8K,
        {"question": "Which town?", "answer": "New York", "id": "town"},
        {"question": "Half?", "answer": 0.5},
    ]
    problems = load_questions(write(tmp_path / "gsm.jsonl", *rows, {"question": "?", "answer": 7, "id": 4, "level": 1}))
    assert [problem.test for problem in problems] == [AnswerTest(a) for a in ("72", "New York", "0.5", "7")]
    assert [problem.id for problem in problems] == ["gsm/1", "town", "gsm/3", "4"]
    assert problems[0].messages == ({"role": "user", "content": f"How many clips?\n\n{REQUEST}"},)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"answer": "1"}, "`question` must be"),
        ({"question": " ", "answer": "1"}, "`question` must be"),
        ({"question": "?"}, "`answer` must be"),
        ({"question": "?", "answer": "so it is\n#### "}, "`answer` must be"),
        ({"question": "?", "answer": True}, "`answer` must be"),
        ({"question": "?", "answer": ["1"]}, "`answer` must be"),
        ({"question": "?", "answer": "1", "id": ""}, "`id` must be"),
        ({"question": "??", "answer": "1", "id": "a"}, "used before, in line 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, row: dict[str, object], what: str) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "?", "answer": "1", "id": "a"}, row)
    with pytest.raises(UserError, match=what) as error:
        load_questions(path)
    assert error.value.where == f"{path}:2"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no question"):
        load_questions(write(tmp_path / "q.jsonl"))


def test_parquet_is_read_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([GSM8K]), tmp_path / "test.parquet")
    (problem,) = load_questions(tmp_path / "test.parquet")
    assert (problem.id, problem.test) == ("test/1", AnswerTest("72"))


def test_the_set_is_loaded_by_name_without_duplicates(tmp_path: Path) -> None:
    write(tmp_path / "q.jsonl", GSM8K, GSM8K, {"question": "Half?", "answer": "1/2"})
    chosen = load_problems("questions:q.jsonl", role="evaluate", base_dir=tmp_path)
    assert len(chosen.problems) == 2
    assert chosen.note == "questions, q.jsonl: 2 problems; left out: 1 duplicates"
    with pytest.raises(UserError, match="cannot be read"):
        load_problems("questions:none.jsonl", role="evaluate", base_dir=tmp_path)
    with pytest.raises(UserError, match=r"Did you mean questions\?"):
        load_problems("question", role="evaluate", base_dir=tmp_path)


def test_completions_from_anywhere_are_graded_with_them(tmp_path: Path) -> None:
    problems = load_questions(write(tmp_path / "q.jsonl", GSM8K))
    texts = ["so 48 + 24 = 72 clips", "<think>72</think> 71", "no"]
    samples = write(
        tmp_path / "s.jsonl",
        *({"problem_id": "q/1", "index": index, "completion": text} for index, text in enumerate(texts)),
    )
    done = grade_file(samples, problems)
    assert done["verdicts"] == {"pass": 1, "wrong_answer": 1, "no_answer": 1}
    assert done["grading"]["tier"] == "no programs"
