"""LiveCodeBench rows: windows, releases, both kinds of tests, and private tests that must not run code."""

import base64
import json
import pickle
import zlib
from datetime import date
from hashlib import sha256

import pytest
from click.testing import CliRunner

from ssd_lite.cli import main
from ssd_lite.errors import UserError
from ssd_lite.problem_tests import FunctionalTest, StdinTest
from ssd_lite.problems.livecodebench import count, load
from ssd_lite.problems.livecodebench_name import parse
from ssd_lite.problems.named import load_problems


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


def dated(folder, *days, name="test6.jsonl"):
    return file(folder, *(row(f"{name}-{day}", f"{day}T00:00:00") for day in days), name=name)


def ids(folder, rest):
    return [p.id.rpartition(".jsonl-")[2] for p in ask(folder, rest).problems]


def ask(folder, rest):
    return load_problems(f"livecodebench:{rest}", role="evaluate", base_dir=folder)


DAYS = ("2025-01-04", "2025-02-01", "2025-05-31", "2025-06-01")


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ("2025-02-01..2025-05-31", DAYS[1:3]),
        ("2025-02-01..", DAYS[1:]),
        ("..2025-05-31", DAYS[:3]),
        ("2025-02-01..2025-02-01", DAYS[1:2]),
        ("2025-02-02..2025-06-30", DAYS[2:]),
    ],
)
def test_a_window_holds_both_its_days(tmp_path, window, expected):
    path = dated(tmp_path, *DAYS)
    assert tuple(ids(tmp_path, f"test6.jsonl:{window}")) == expected
    assert count(path, parse(f"{path}:{window}", tmp_path)) == len(expected)


def test_release_and_window_together(tmp_path):
    folder = tmp_path / "lcb"
    folder.mkdir()
    dated(folder, "2025-01-10", "2025-02-10", name="test.jsonl")
    dated(folder, "2025-01-20", "2025-02-20", name="test2.jsonl")
    assert ids(tmp_path, "lcb:v2:2025-02-01..") == ["2025-02-20"]
    assert ids(tmp_path, "lcb:release_v2:2025-02-01..") == ["2025-02-10", "2025-02-20"]
    assert ids(tmp_path, "lcb:2025-02-01..") == ["2025-02-10", "2025-02-20"]
    assert ids(tmp_path, "lcb:v1") == ["2025-01-10", "2025-02-10"]
    found = ask(tmp_path, "lcb:v2:2025-02-01..")
    assert found.name == "livecodebench:lcb:v2:2025-02-01..2025-02-20"
    assert "LiveCodeBench, lcb, v2, window 2025-02-01.., contest dates 2025-02-20 to 2025-02-20: 1 prob" in found.note


def test_a_release_has_the_digest_of_its_own_files(tmp_path):
    one = dated(tmp_path, "2025-01-10", name="test.jsonl")
    first = ask(tmp_path, ".:v1")
    dated(tmp_path, "2025-02-10", name="test2.jsonl")
    assert first.sha256 == ask(tmp_path, ".:v1").sha256 == sha256(one.read_bytes()).hexdigest()
    assert ask(tmp_path, ".").sha256 != first.sha256


def test_note_and_name_always_say_the_window(tmp_path):
    path = dated(tmp_path, *reversed(DAYS))
    whole = ask(tmp_path, "test6.jsonl")
    assert whole.note == ("LiveCodeBench, test6.jsonl, window all, contest dates 2025-01-04 to 2025-06-01: 4 problems")
    assert whole.name == "livecodebench:test6.jsonl:2025-01-04..2025-06-01"
    assert whole.sha256 == sha256(path.read_bytes()).hexdigest()
    part = ask(tmp_path, "test6.jsonl:2025-01-15..2025-05-31")
    assert part.note == (
        "LiveCodeBench, test6.jsonl, window 2025-01-15..2025-05-31, contest dates 2025-02-01 to 2025-05-31: 2 problems"
    )
    assert part.name == "livecodebench:test6.jsonl:2025-01-15..2025-05-31"


def test_two_windows_of_a_file_are_two_sets(tmp_path):
    dated(tmp_path, *DAYS)
    asked = ["", ":2025-02-01..", ":2025-02-01..2025-05-31", ":2025-05-01..", ":..2025-05-31"]
    found = [ask(tmp_path, f"test6.jsonl{window}") for window in asked]
    assert len({s.sha256 for s in found}) == len({s.name for s in found}) == len(asked)
    again = ask(tmp_path, "test6.jsonl:2025-01-31..2025-05-31")  # the same two problems as by the third
    assert again.sha256 == found[2].sha256
    for problems in found:
        by_its_name = load_problems(problems.name, role="evaluate", base_dir=tmp_path)
        assert (by_its_name.name, by_its_name.problems) == (problems.name, problems.problems)


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        ("", "'' is neither a release nor a window"),
        ("newest", "'newest' is neither"),
        ("2025-02-01", "'2025-02-01' is neither"),
        ("..", "'..' is no window"),
        ("2025-02..2025-05", "is no window"),
        ("2025-2-1..2025-5-31", "is no window"),
        ("20250201..20250531", "is no window"),
        ("2025-02-01...2025-05-31", "is no window"),
        ("2025-02-01 .. 2025-05-31", "is no window"),
        ("2025-02-30..2025-05-31", "2025-02-30 is no date"),
        ("..2025-13-01", "2025-13-01 is no date"),
        ("2025-05-31..2025-02-01", "ends before it begins"),
        ("2025-02-01..2025-05-31:v6", "'v6' stands after the window"),
        ("2025-02-01..:..2025-05-31", "'..2025-05-31' stands after the window"),
    ],
)
def test_what_is_no_window_is_refused_with_the_form(tmp_path, suffix, said):
    dated(tmp_path, *DAYS)
    with pytest.raises(UserError) as caught:
        ask(tmp_path, f"test6.jsonl:{suffix}")
    assert said in caught.value.what
    assert caught.value.where == f"livecodebench:test6.jsonl:{suffix}"
    assert "livecodebench:PATH[:RELEASE][:FROM..TO]" in caught.value.next_step


@pytest.mark.parametrize("suffix", ["v6", "release_v6", "v6:2025-02-01..2025-05-31"])
def test_a_release_beside_one_file_is_refused(tmp_path, suffix):
    dated(tmp_path, *DAYS)
    with pytest.raises(
        UserError, match=r"test6\.jsonl: is one file; (release_)?v6 chooses files of a folder.*FROM\.\.TO"
    ):
        ask(tmp_path, f"test6.jsonl:{suffix}")


def test_a_window_without_problems_says_which_dates_there_are(tmp_path):
    path = dated(tmp_path, *DAYS)
    said = r"none of 4 problems is in the window 2026-01-01\.\..* The contest dates are 2025-01-04 to 2025-06-01"
    with pytest.raises(UserError, match=said):
        ask(tmp_path, "test6.jsonl:2026-01-01..")
    with pytest.raises(UserError, match=said):
        count(path, parse(f"{path}:2026-01-01..", tmp_path))
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no problem"):
        ask(tmp_path, "test6.jsonl")


@pytest.mark.parametrize("suffix", ["", ":2025-02-01..", ":v6", ":v6:2025-02-01..2025-05-31"])
def test_a_missing_path_is_named_alone(tmp_path, suffix):
    with pytest.raises(UserError) as caught:
        ask(tmp_path, f"gone{suffix}")
    assert caught.value.where == str(tmp_path / "gone")
    with pytest.raises(UserError, match="names no file or folder" if suffix else "unknown problem set"):
        ask(tmp_path, suffix)


def test_a_path_may_hold_colons_and_dots(tmp_path):
    folder = tmp_path / "a:v6" / "x..y"
    folder.mkdir(parents=True)
    dated(folder, *DAYS, name="2025-01-01..2025-01-02")
    assert len(ids(folder, "2025-01-01..2025-01-02:2025-02-01..")) == 3
    dated(folder, *DAYS)
    assert len(ids(tmp_path, "a:v6/x..y/../x..y/test6.jsonl:..2025-05-31")) == 3
    assert len(ids(tmp_path, "a:v6/x..y:v6:..2025-05-31")) == 3


def test_grade_prints_set_window_and_count(tmp_path):
    path = dated(tmp_path, *DAYS)
    samples = tmp_path / "s.jsonl"
    program = "print(sum(map(int, input().split())))"
    keys = [f"test6.jsonl-{day}" for day in DAYS[1:3]]
    samples.write_text("".join(json.dumps({"problem_id": k, "index": 0, "program": program}) + "\n" for k in keys))
    words = ["grade", str(samples), "--problems", f"livecodebench:{path}:2025-02-01..2025-05-31", "--unsafe-sandbox"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "grade: 2 samples of 2 problems: 2 pass" in done.output
    said = "window 2025-02-01..2025-05-31, contest dates 2025-02-01 to 2025-05-31: 2 problems"
    assert f"LiveCodeBench, test6.jsonl, {said}" in done.output
