"""Rejection sampling: real programs graded in the sandbox, journalled, held to what they stand on, and filtered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import Stopped, UserError
from ssd_lite.journal import Journal, read_records
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Curate, Model, Problems, Recipe
from ssd_lite.recipe_measuring import Evaluate
from ssd_lite.records import Problem, Sample, SamplingSettings, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import correctness, curate
from ssd_lite.stages.correctness import require_tests
from ssd_lite.stages.pages.facts import curating
from ssd_lite.stages.pages.model_card import card
from ssd_lite.stages.report_findings import Findings
from ssd_lite.stages.sample import sample as sample_stage

END = 2
LAW = SamplingSettings(1.6, 20, 0.8, 0.0, 64)
RIGHT, WRONG, CRASH = "return n * 2", "return n + 2", "return n.nothing"
FACTS = {"kind": "functional", "entry_point": "twice", "cases": [[[1], 2], [[5], 10], [[0], 0]]}


def problem(name: str, tests: Any = FACTS, golden: str | None = f"def twice(n):\n    {RIGHT}\n") -> dict[str, Any]:
    body = {"id": name, "prompt": f"Write twice, the function {name}.", "tests": tests, "golden": golden}
    return {key: value for key, value in body.items() if value is not None}


def sample(name: str, index: int, body: str) -> Sample:
    text = f"Sure.\n\n```python\ndef twice(n):\n    {body}\n```"
    ids = (*(10 + ord(char) for char in body), END)
    return Sample(name, index, (1, 5), ids, text, "stop", 0.5, 0, LAW, "hf", "h")


class Words:
    """The part of a tokenizer that the stage uses."""

    bos_id, end_ids = 1, (END,)


def make_run(folder: Path, problems: list[dict[str, Any]], samples: list[Sample], **changes: Any) -> RunFolder:
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in problems))
    recipe = Recipe(
        name="r",
        model=Model(name="m"),
        problems=Problems(train=str(file)),
        curate=Curate(only_correct=True, **changes),
        evaluate=Evaluate(n=1, k=[1]),
    )
    run = RunFolder.create(folder / "run", recipe)
    with Journal(run.samples, key=lambda record: (record["problem_id"], record["index"])) as journal:
        journal.append([to_json(item) for item in samples])
    digest = load_problems(str(file), role="train").sha256
    run.finish("sample", {"samples": len(samples), "problems": {"sha256": digest}}, 0.0)
    return run


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "_tokenizer", lambda run: Words())


SAMPLES = [
    sample("a", 0, WRONG),
    sample("a", 1, RIGHT),
    sample("a", 2, RIGHT),
    sample("b", 0, CRASH),
    sample("b", 1, "return [n + n][0]"),
    sample("c", 0, WRONG),
]
PROBLEMS = [problem("a"), problem("b"), problem("c")]


def trained(run: RunFolder) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in run.train_rows.read_text().splitlines()]
    return [(row["problem_id"], row["index"]) for row in rows]


def test_only_samples_that_pass_are_kept_and_the_counts_add_up(tmp_path: Path) -> None:
    run = make_run(tmp_path, PROBLEMS, SAMPLES)
    summary = curate.curate(run)
    assert trained(run) == [("a", 1), ("b", 1)]
    assert {reason: count for reason, count in summary["dropped"].items() if count} == {
        "duplicate": 1,
        "not_correct": 3,
    }
    graded = summary["graded"]
    assert (graded["samples"], graded["passed"], graded["problems"], graded["problems_passed"]) == (6, 3, 3, 2)
    assert graded["verdicts"] == {"pass": 3, "wrong_answer": 2, "error": 1}
    assert graded["golden"] == "3 of 3 problems have a golden solution, and each passes"
    assert len(read_records(run.curate_grades)) == 6
    assert curate.curate(run) == summary


def test_without_the_key_nothing_is_graded(tmp_path: Path) -> None:
    run = make_run(tmp_path, PROBLEMS, SAMPLES)
    run = RunFolder(run.path, run.recipe.model_copy(update={"curate": Curate()}))
    summary = curate.curate(run)
    assert summary["rows"] == 5
    assert "not_correct" not in summary["dropped"]
    assert "graded" not in summary
    assert not run.curate_grades.exists()


def test_the_shortest_are_counted_among_the_correct_ones(tmp_path: Path) -> None:
    samples = [sample("a", 0, WRONG), *(sample("a", n, RIGHT + " " * n) for n in range(1, 5))]
    run = make_run(tmp_path, PROBLEMS[:1], samples, shortest_percent=25)
    assert curate.curate(run)["dropped"]["shortest"] == 1
    assert trained(run) == [("a", 2), ("a", 3), ("a", 4)]


def test_a_stop_keeps_what_is_graded_and_the_rest_is_graded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, PROBLEMS, SAMPLES)
    with monkeypatch.context() as patch:
        patch.setattr(correctness, "stop_requested", lambda: True)
        with pytest.raises(Stopped, match="after 1 of 6 programs"):
            curate.curate(run)
    first = run.curate_grades.read_bytes()
    assert first.count(b"\n") == 1
    with run.curate_grades.open("ab") as torn:  # what a kill leaves
        torn.write(b'{"problem_id":"c","ind')
    assert curate.curate(run)["graded"]["passed"] == 3
    assert run.curate_grades.read_bytes().startswith(first)
    assert trained(run) == [("a", 1), ("b", 1)]


def test_grades_of_other_samples_or_another_block_are_not_mixed_in(tmp_path: Path) -> None:
    run = make_run(tmp_path, PROBLEMS, SAMPLES)
    curate.curate(run)
    run.train_rows.unlink()
    other = run.recipe.model_copy(update={"evaluate": Evaluate(n=1, k=[1], block="first")})
    with pytest.raises(UserError, match=r"made otherwise \(block\)"):
        curate.curate(RunFolder(run.path, other))
    run.samples.unlink()
    with Journal(run.samples, key=lambda record: (record["problem_id"], record["index"])) as journal:
        journal.append([to_json(sample("a", 0, RIGHT))])
    with pytest.raises(UserError, match=r"made otherwise \(samples_sha256\)"):
        curate.curate(run)


def test_problems_without_tests_are_refused_with_their_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, [problem("a"), problem("b", None, None), problem("c", None, None)], SAMPLES)
    with pytest.raises(UserError, match=r"2 of 3 training problems have no tests, such as 'b'") as error:
        curate.curate(run)
    assert "Name a set with tests" in str(error.value)
    assert not run.curate_grades.exists()
    require_tests([], "curate.only_correct")
    with pytest.raises(UserError, match="1 of 1"):
        require_tests([Problem("x", ({"role": "user", "content": "Hi."},))], "train.grpo")


def test_a_golden_solution_that_fails_stops_before_any_sample_is_graded(tmp_path: Path) -> None:
    run = make_run(tmp_path, [problem("a"), problem("b", golden=f"def twice(n):\n    {WRONG}\n")], SAMPLES[:5])
    with pytest.raises(UserError, match="1 of 2 golden solutions fail"):
        curate.curate(run)
    assert not run.curate_grades.exists() or run.curate_grades.read_bytes() == b""


def test_a_problem_file_that_changed_since_sampling_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, PROBLEMS, SAMPLES)
    with Path(run.recipe.problems.train).open("a") as file:
        file.write(json.dumps(problem("d")) + "\n")
    with pytest.raises(UserError, match="not those that were sampled"):
        curate.curate(run)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (problem("a", None, None), "1 of 1 training problems have no tests"),
        (problem("a", golden=f"def twice(n):\n    {WRONG}\n"), "1 of 1 golden solutions fail"),
    ],
)
def test_sampling_refuses_what_cannot_be_graded_before_it_looks_for_a_model(
    bad: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, [bad], [])
    with pytest.raises(UserError, match=message):
        sample_stage(RunFolder.create(tmp_path / "fresh", run.recipe))


def test_page_and_model_card_say_that_it_is_no_ssd(tmp_path: Path) -> None:
    run = make_run(tmp_path, PROBLEMS, SAMPLES)
    curate.curate(run)
    page = curating(Findings({}, {}, run.manifest(), [], []))
    assert "3 of 6 samples passed, of 2 of 3 problems" in page
    assert "failed its problem&#x27;s tests" in page
    assert "Nothing looked at correctness" not in page
    merged = {"base": {"name": "m", "kind": "hub", "revision": None, "note": "n", "weights_sha256": "ab"}}
    numbers = {"changed_tensors": 1, "max_abs_change": 1.0, "change_norm": 1.0, "dtype": "float32"}
    text = card(run, merged | numbers, None)
    assert "on its own samples, those that pass their problems' tests, with cross-entropy" in text
    assert "This is not SSD." in text
    plain = run.recipe.model_copy(update={"curate": Curate()})
    assert "nothing checked for correctness" in card(RunFolder(run.path, plain), merged | numbers, None)


def test_no_correct_sample_names_the_reason(tmp_path: Path) -> None:
    run = make_run(tmp_path, PROBLEMS, [sample("a", 0, WRONG), sample("c", 0, CRASH)])
    with pytest.raises(UserError, match="0 of 2 samples left: 2 not_correct"):
        curate.curate(run)
    assert not run.train_rows.exists()
