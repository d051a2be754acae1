"""Evaluating a model without a run: its files, going on, and no mixing of results that were made otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import UserError
from ssd_lite.recipe_file import validate
from ssd_lite.stages.evaluate import evaluate_model

TESTS = {"kind": "functional", "entry_point": "one", "cases": [[[], 1]]}


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "set.jsonl"
    write(path, TESTS)
    return path


def write(path: Path, tests: dict[str, Any]) -> None:
    rows = [{"id": f"p{i}", "prompt": f"Write one(), which returns {i}.", "tests": tests} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(problems: Path, out: Path, **changes: Any) -> dict[str, Any]:
    section = {"n": 2, "k": [1], "base": {"temperature": 0.6}, "max_new_tokens": 6, **changes}
    value = {
        "name": "e",
        "threads": 1,
        "model": {"name": "smollm2-135m-instruct"},
        "problems": {"evaluate": str(problems)},
        "evaluate": section,
    }
    out.mkdir(exist_ok=True)
    return evaluate_model(validate(value, "test"), out)


def test_it_writes_a_report_and_goes_on(packaged_model, problems, tmp_path):
    out = tmp_path / "out"
    report = evaluate(problems, out)
    assert json.loads((out / "report.json").read_text()) == report
    assert report["samples"] == 4
    assert report["gguf_type"] == "as in the file"
    first = (out / "samples.jsonl").read_bytes()
    more = evaluate(problems, out, n=3)
    assert more["samples"] == 6
    assert (out / "samples.jsonl").read_bytes().startswith(first)


def test_results_that_were_made_otherwise_are_refused(packaged_model, problems, tmp_path):
    out = tmp_path / "out"
    evaluate(problems, out)
    with pytest.raises(UserError, match="other settings"):
        evaluate(problems, out, base={"temperature": 0.9})
    with pytest.raises(UserError, match="another seed"):
        evaluate(problems, out, seed=5)
    with pytest.raises(UserError, match=r"made otherwise .*block"):
        evaluate(problems, out, block="first")
    write(problems, {**TESTS, "cases": [[[], 2]]})
    with pytest.raises(UserError, match=r"made otherwise .*problems_sha256"):
        evaluate(problems, out)
