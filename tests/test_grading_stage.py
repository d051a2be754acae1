"""`ssd-lite grade`: sample files in, grades and a summary out; interchange files for other harnesses."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ssd_lite.errors import UserError
from ssd_lite.grading.interchange import Interchange, write_evalplus, write_livecodebench
from ssd_lite.grading.steps import Submission
from ssd_lite.problem_tests import FunctionalTest
from ssd_lite.records import Problem
from ssd_lite.stages import grade as stage
from ssd_lite.stages.grade import grade_file, refuse_outputs

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
GOOD = "def add(a, b):\n    return a + b\n"
PROBLEMS = [
    Problem("a", (), FunctionalTest("add", (([1, 2], 3),)), golden=GOOD),
    Problem("b", (), FunctionalTest("add", (([2, 2], 4),))),
]


def samples(tmp_path, *lines):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@needs_bubblewrap
def test_completions_and_programs_are_graded_in_order(tmp_path):
    fenced = f"Here:\n```python\n{GOOD}```"
    path = samples(
        tmp_path,
        {"problem_id": "b", "index": 0, "program": GOOD},
        {"problem_id": "a", "index": 0, "completion": fenced},
        "",
        {"problem_id": "a", "index": 1, "completion": "no block"},
    )
    out = tmp_path / "grades.jsonl"
    result = grade_file(path, PROBLEMS, sandbox="bubblewrap", out=out)
    grades = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(g["problem_id"], g["index"], g["verdict"]) for g in grades] == [
        ("b", 0, "pass"),
        ("a", 0, "pass"),
        ("a", 1, "no_code"),
    ]
    assert set(grades[0]) == {"problem_id", "index", "verdict", "detail", "cpu_s"}
    assert result["pass@1"] == 0.75
    assert result["fences"] == {"closed": 1, "none": 1}
    assert result["grading"]["tier"] == "bubblewrap"
    assert "1 of 2" in result["golden"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "JSON"),
        ("[1]", "one JSON object"),
        ({"problem_id": "x", "index": 0, "program": ""}, "no problem 'x'"),
        ({"problem_id": "a", "index": "0", "program": ""}, "whole number"),
        ({"problem_id": "a", "index": 0}, "completion"),
        ({"problem_id": "a", "index": 0, "program": "", "completion": ""}, "either"),
        ({"problem_id": "b", "index": 0, "program": ""}, "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = samples(tmp_path, {"problem_id": "b", "index": 0, "program": GOOD}, line)
    with pytest.raises(UserError, match=r"samples\.jsonl:2") as caught:
        grade_file(path, PROBLEMS)
    assert words in str(caught.value)


def test_no_samples_and_no_file(tmp_path):
    with pytest.raises(UserError, match="no samples"):
        grade_file(samples(tmp_path), PROBLEMS)
    with pytest.raises(UserError, match="cannot read"):
        grade_file(tmp_path / "absent.jsonl", PROBLEMS)


@needs_bubblewrap
def test_a_golden_solution_that_fails_stops_the_grading(tmp_path):
    broken = [Problem("a", (), FunctionalTest("add", (([1, 2], 4),)), golden=GOOD)]
    with pytest.raises(UserError, match="1 of 1 golden"):
        grade_file(samples(tmp_path, {"problem_id": "a", "index": 0, "program": GOOD}), broken, sandbox="bubblewrap")


def test_interchange_files(tmp_path):
    rows = [Submission(PROBLEMS[i], n, f"p{i}{n}") for n in (1, 0) for i in (0, 1)]
    assert write_evalplus(rows, tmp_path / "e.jsonl") == 4
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert lines[0] == {"task_id": "a", "solution": "p00"}
    assert write_livecodebench(rows, tmp_path / "l.json") == 2
    assert json.loads((tmp_path / "l.json").read_text())[1] == {"question_id": "b", "code_list": ["p10", "p11"]}
    with pytest.raises(UserError, match="same number"):
        write_livecodebench(rows[:3], tmp_path / "l.json")


@needs_bubblewrap
def test_grade_writes_what_other_harnesses_read(tmp_path):
    file = samples(tmp_path, *({"problem_id": p, "index": i, "program": GOOD} for p in ("a", "b") for i in (0, 1)))
    evalplus, livecodebench = tmp_path / "e.jsonl", tmp_path / "l.json"
    grade_file(file, PROBLEMS, sandbox="bubblewrap", interchange=Interchange(evalplus, livecodebench))
    lines = [json.loads(line) for line in evalplus.read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["a", "b", "a", "b"]
    assert {line["solution"] for line in lines} == {GOOD}
    assert [len(entry["code_list"]) for entry in json.loads(livecodebench.read_text())] == [2, 2]


def test_an_output_that_would_replace_a_file_of_the_same_command_is_refused_before_grading(tmp_path):
    row = {"problem_id": "a", "index": 0, "program": GOOD}
    file = samples(tmp_path, row)
    before = file.read_bytes()
    link, hard, problems = tmp_path / "link.jsonl", tmp_path / "hard.jsonl", tmp_path / "problems.jsonl"
    link.symlink_to(file)
    hard.hardlink_to(file)
    problems.write_text("{}")
    new = tmp_path / "new.jsonl"
    cases = [
        ({"out": file}, "--out: .*samples.jsonl would replace the file of SAMPLES"),
        ({"out": tmp_path / ".." / tmp_path.name / "samples.jsonl"}, "--out: .* of SAMPLES"),
        ({"out": link}, "--out: .* of SAMPLES"),
        ({"out": hard}, "--out: .* of SAMPLES"),
        ({"interchange": Interchange(evalplus=file)}, "--evalplus: .* of SAMPLES"),
        ({"interchange": Interchange(livecodebench=file)}, "--livecodebench: .* of SAMPLES"),
        ({"out": new, "interchange": Interchange(evalplus=new)}, "--evalplus: .* of --out"),
        ({"out": new, "interchange": Interchange(livecodebench=new)}, "--livecodebench: .* of --out"),
        ({"interchange": Interchange(new, new)}, "--livecodebench: .* of --evalplus"),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=words):
            grade_file(file, PROBLEMS, **options)
    with pytest.raises(UserError, match=r"--out: .* of --problems"):
        refuse_outputs({"--problems": problems}, problems, Interchange())
    part = tmp_path / "grades.jsonl.part"
    part.write_bytes(before)
    with pytest.raises(UserError, match="of SAMPLES"):
        grade_file(part, PROBLEMS, out=tmp_path / "grades.jsonl")
    assert file.read_bytes() == part.read_bytes() == before
    assert not new.exists()


@pytest.mark.parametrize("option", ["out", "evalplus", "livecodebench"])
def test_an_output_that_cannot_be_written_is_noticed_before_grading(tmp_path, monkeypatch, option):
    def graded(*words):
        raise AssertionError("a grader was opened")

    monkeypatch.setattr(stage, "open_grader", graded)
    file = samples(tmp_path, {"problem_id": "a", "index": 0, "program": GOOD})
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    bad = [tmp_path / "none" / "g.jsonl", tmp_path / "folder.jsonl", tmp_path / "file" / "g.jsonl"]
    if os.getuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        bad.append(tmp_path / "closed" / "g.jsonl")
    for path in bad:
        options = {"out": path} if option == "out" else {"interchange": Interchange(**{option: path})}
        with pytest.raises(UserError, match=f"--{option}: cannot write .*{path.name}"):
            grade_file(file, PROBLEMS, **options)
    with pytest.raises(AssertionError, match="was opened"):
        grade_file(file, PROBLEMS, out=tmp_path / "good.jsonl", interchange=Interchange(evalplus=Path("/dev/null")))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["file", "samples.jsonl"]
