"""The problem file format: what is accepted, and that each fault is refused with its file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import FunctionalTest, ScriptTest, StdinTest
from ssd_lite.problems.jsonl import check_messages, load_jsonl
from ssd_lite.records import Limits

GOOD = '{"id": "a", "prompt": "Write f."}\n'


def write(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "set.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return file


def refusal(tmp_path: Path, content: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        load_jsonl(write(tmp_path, content))
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value.message


def line(**keys: Any) -> str:
    return json.dumps({"id": "a", "prompt": "p", **keys}) + "\n"


def test_reads_every_field(tmp_path: Path) -> None:
    tests = {"kind": "functional", "entry_point": "f", "cases": [[[1, "x"], {"a": [2.5]}]], "tolerance": 0.1}
    content = line(tests=tests, difficulty="hard", golden="def f(): pass", limits={"cpu_s": 1, "memory_mib": 64})
    (problem,) = load_jsonl(write(tmp_path, content))
    assert problem.id == "a"
    assert problem.messages == ({"role": "user", "content": "p"},)
    assert problem.test == FunctionalTest("f", (([1, "x"], {"a": [2.5]}),), 0.1)
    assert (problem.difficulty, problem.golden) == ("hard", "def f(): pass")
    assert problem.limits == Limits(cpu_s=1, memory_mib=64)


def test_reads_messages_and_the_other_kinds_of_tests(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi."}]
    stdin = {"kind": "stdin", "cases": [{"input": "1", "output": "2"}]}
    script = {"kind": "script", "code": "assert f() == 1"}
    content = "".join(
        json.dumps(value) + "\n"
        for value in ({"id": "a", "messages": chat, "tests": stdin}, {"id": "b", "messages": chat, "tests": script})
    )
    first, second = load_jsonl(write(tmp_path, content))
    assert first.messages == tuple(chat)
    assert first.test == StdinTest((("1", "2"),))
    assert second.test == ScriptTest("assert f() == 1")


@pytest.mark.parametrize(
    "content",
    [
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        "\n  \n" + GOOD + "\n\n",
        GOOD.rstrip("\n"),
        '{"id": "a", "prompt": "\\ud83d\\ude00 and \u00e9"}\n',
        '{"id": "a", "prompt": "one\u2028two"}\n',
    ],
    ids=["crlf", "bom", "empty lines", "no last newline", "surrogate pair", "line separator inside a text"],
)
def test_accepts(tmp_path: Path, content: str) -> None:
    (problem,) = load_jsonl(write(tmp_path, content))
    assert problem.id == "a"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"id": "b", "prompt" "p"}\n', "broken JSON at column 22"),
        ('{"id": "b", "pro', "cut short"),
        ('["b", "p"]\n', "JSON array, want one object a line"),
        ("[\n", "spread over several lines"),
        ('"text"\n', "JSON string, want an object"),
        ("3\n", "JSON number, want an object"),
        ("null\n", "JSON null, want an object"),
        ('{"id": "b", "prompt": "p", "id": "c"}\n', "key 'id' occurs twice"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu_s": 1, "cpu_s": 2}}\n', "key 'cpu_s' occurs twice"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu_s": NaN}}\n', "NaN is not JSON"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu_s": -Infinity}}\n', "-Infinity is not JSON"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu_s": 1e999}}\n', "1e999 is too large"),
        ('{"id": "b", "prompt": "\\ud800"}\n', "lone surrogate \\ud800"),
        ('{"id": "b", "prompt": "p", "tests": {"k\\udc00": 1}}\n', "lone surrogate \\udc00"),
        ('{"prompt": "p"}\n', "`id` must be a non-empty string, keys found: prompt"),
        ('{"id": 7, "prompt": "p"}\n', "`id` must be a non-empty string, got 7"),
        ('{"id": " ", "prompt": "p"}\n', "`id` must be a non-empty string"),
        ('{"id": "b"}\n', "has neither `prompt` nor `messages` (keys found: id)"),
        ('{"id": "b", "prompt": "p", "messages": []}\n', "has both `prompt` and `messages`"),
        ('{"id": "b", "prompt": 7}\n', "`prompt` must be a string, got 7"),
        ('{"id": "b", "prompt": " \\n"}\n', "`prompt` is empty"),
        ('{"id": "b", "promt": "p"}\n', "unknown key `promt`. Did you mean `prompt`?"),
        ('{"id": "b", "prompt": "p", "zzz": 1}\n', "unknown key `zzz`. Known keys: id, prompt"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu": 1}}\n', "`limits.cpu`. Did you mean `limits.cpu_s`?"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu_s": 0}}\n', "limits.cpu_s must be a positive number"),
        ('{"id": "b", "prompt": "p", "limits": 3}\n', "`limits` must be an object"),
        ('{"id": "b", "prompt": "p", "difficulty": "trivial"}\n', "`difficulty` is 'trivial'"),
        ('{"id": "b", "prompt": "p", "difficulty": ["easy"]}\n', "`difficulty` is ['easy']"),
        ('{"id": "b", "prompt": "p", "golden": ""}\n', "`golden` must be a program"),
        ('{"id": "b", "prompt": "p", "tests": []}\n', "`tests` must be an object"),
        ('{"id": "b", "prompt": "p", "tests": {"kind": "function"}}\n', "tests.kind must be"),
        ('{"id": "b", "prompt": "p", "tests": {"kind": "stdin", "cases": []}}\n', "non-empty list `cases`"),
        ('{"id": "b", "prompt": "p", "tests": {"kind": "script", "code": "x", "setup": 3}}\n', "must be strings"),
        ('{"id": "a", "prompt": "other"}\n', "id 'a' was used before, in line 1"),
        ("[" * 100_000 + "\n", "nested too deeply"),
        ('{"id": "b", "prompt": "p", "limits": {"cpu_s": ' + "9" * 5000 + "}}\n", "Exceeds the limit"),
    ],
)
def test_refuses_with_file_and_line(tmp_path: Path, bad: str, said: str) -> None:
    message = refusal(tmp_path, GOOD + bad)
    assert f"{tmp_path}/set.jsonl:2: " in message
    assert said in message


def test_names_the_byte_of_invalid_utf8(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.encode() + b'{"id": "b\xff", "prompt": "p"}\n')
    assert "set.jsonl:2: invalid UTF-8 at byte 10 of the line" in message
    assert f"byte offset {len(GOOD) + 9} of the file (0xff)" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1\x00\x00", "is a parquet file"),
        (b"\x1f\x8b\x08\x00", "is gzip-compressed"),
        ("\ufeff{}".encode("utf-16-le"), "is UTF-16"),
        (b"id,prompt\na,b\n", "set.jsonl:1: broken JSON at column 1"),
        (b"", "holds no problem"),
        (b"\n\n", "holds no problem"),
    ],
)
def test_refuses_other_files(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(tmp_path, content)


def test_names_the_absolute_path_of_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}/none.jsonl: cannot be read \(No such file"):
        load_jsonl(Path("none.jsonl"))
    with pytest.raises(UserError, match="not expanded here"):
        load_jsonl(Path("~/none.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        load_jsonl(tmp_path)


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([], "non-empty list"),
        ({"role": "user"}, "non-empty list"),
        ([{"role": "user"}], "exactly `role` and `content`"),
        ([{"role": "user", "content": "a", "name": "b"}], "exactly `role` and `content`"),
        ([{"role": "tool", "content": "a"}], "messages[0].role is 'tool'"),
        ([{"role": "user", "content": " "}], "messages[0].content must be a non-empty string"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "is from the assistant"),
    ],
)
def test_refuses_malformed_messages(chat: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_messages(chat, "here:1")
    assert said in caught.value.message
    assert caught.value.message.startswith("here:1: ")
