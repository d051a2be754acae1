"""LiveCodeBench rows: windows, releases, both kinds of tests, and private tests that must not run code."""

import base64
import json
import pickle
import zlib
from datetime import date

import pytest

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import FunctionalTest, StdinTest
from ssd_lite.problems.livecodebench import load


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def row(name, day="2025-02-03T00:00:00", **changes):
    public = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    private = [{"input": "4 4\n", "output": "8\n", "testtype": "stdin"}]
    body = {
        "question_id": name,
        "question_content": f"Add. {name}",
        "contest_date": day,
        "platform": "atcoder",
        "difficulty": "easy",
        "starter_code": "",
        "metadata": "{}",
        "public_test_cases": json.dumps(public),
        "private_test_cases": packed(json.dumps(private)),
    }
    return {**body, **changes}


def file(folder, *rows, name="test.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def test_stdin_and_functional_problems(tmp_path):
    cases = [{"input": '[1, 2]\n"a=b"', "output": "true", "testtype": "functional"}]
    functional = row(
        "f",
        public_test_cases=json.dumps(cases),
        private_test_cases="[]",
        starter_code="class Solution:\n    def has(self, xs, s):",
        metadata=json.dumps({"func_name": "has"}),
        platform="leetcode",
    )
    one, two = load(file(tmp_path, row("s"), functional))
    assert one.test == StdinTest((("1 2\n", "3\n"), ("4 4\n", "8\n")))
    assert two.test == FunctionalTest("has", (([[1, 2], "a=b"], True),))
    assert "class Solution" in two.messages[0]["content"]
    assert one.limits is not None
    assert one.limits.cpu_s == 6


def test_window_platform_and_difficulty(tmp_path):
    path = file(
        tmp_path, row("a", "2025-01-31T00:00:00"), row("b"), row("c", platform="leetcode"), row("d", difficulty="hard")
    )
    assert [p.id for p in load(path, start=date(2025, 2, 1), end=date(2025, 2, 3))] == ["b", "c", "d"]
    assert [p.id for p in load(path, platforms=["leetcode"])] == ["c"]
    assert [p.id for p in load(path, difficulties=["hard"])] == ["d"]
    with pytest.raises(UserError, match="none of 4"):
        load(path, start=date(2026, 1, 1))


def test_releases_of_a_folder(tmp_path):
    file(tmp_path, row("a"))
    file(tmp_path, row("b"), name="test2.jsonl")
    file(tmp_path, row("c"), name="test3.jsonl")
    assert [p.id for p in load(tmp_path)] == ["a", "b", "c"]
    assert [p.id for p in load(tmp_path, release="release_v2")] == ["a", "b"]
    assert [p.id for p in load(tmp_path, release="v3")] == ["c"]
    with pytest.raises(UserError, match=r"test4\.jsonl"):
        load(tmp_path, release="release_v4")
    with pytest.raises(UserError, match="unknown release"):
        load(tmp_path, release="newest")


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize("private", [packed(Evil()), packed([1]), "!!", packed("[")[:-8], packed("nonsense")])
def test_private_tests_that_are_no_pickled_text(tmp_path, private, capsys):
    with pytest.raises(UserError, match=r"test\.jsonl:1"):
        load(file(tmp_path, row("a", private_test_cases=private)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "bad", [{"question_id": None}, {"contest_date": "soon"}, {"public_test_cases": "[]", "private_test_cases": "[]"}]
)
def test_a_bad_row_is_named(tmp_path, bad):
    with pytest.raises(UserError, match=r"test\.jsonl:2"):
        load(file(tmp_path, row("a"), row("b", **bad)))
