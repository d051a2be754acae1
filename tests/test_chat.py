"""Base and tuned side by side with one seed, columns that grow, and Ctrl-C that ends a reply and not the program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click.testing
import pytest
from tiny_models import packaged_source, save_tiny
from trained_run import make_merged_run

from ssd_lite.atomic import new_folder
from ssd_lite.cli import main
from ssd_lite.engines.weights.model_folder import weights_sha256
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.chat import ChatOptions, chat, chat_replies
from ssd_lite.stages.conversation.side_by_side import Columns, visible, wide
from ssd_lite.stages.conversation.turns import Conversation

pytest.importorskip("llama_cpp")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose merge is done, with another decoding for each arm."""
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    decodings = {"base": {"temperature": 0.5}, "tuned": {"temperature": 1.5}}
    return make_merged_run(tmp_path, evaluate={"max_new_tokens": 20, **decodings})


def test_both_answer_each_under_its_decoding_with_one_seed(run: RunFolder, capsys) -> None:
    both = chat_replies(run.path, ChatOptions(prompt="Hello", seed=3, compare=True))
    assert list(both) == ["base", "tuned"]
    out = capsys.readouterr().out
    assert out == f"base:\n{visible(both['base'])}\ntuned:\n{visible(both['tuned'])}\n"
    assert both["base"] == chat(run.path, ChatOptions(prompt="Hello", seed=3, base=True))
    assert both["base"] != both["tuned"]
    assert {path.name for path in run.gguf.glob("*.gguf")} == {"tiny-f16.gguf"}, "the type of the base, for both"
    assert chat(run.path, ChatOptions(prompt="Hello", seed=3, compare=True)) == both["tuned"]
    assert chat(run.path, ChatOptions(prompt="Hello", seed=4, compare=True)) != both["tuned"]


def test_the_seed_is_the_same_on_both_sides(run: RunFolder, monkeypatch) -> None:
    """Where base and tuned are one model under one law, both say the same."""
    same = {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.0}
    recipe = run.recipe.model_dump(mode="json")
    recipe["evaluate"] |= {"base": same, "tuned": same}
    recipe["model"]["name"] = str(run.merged)
    twin = RunFolder.create(run.path.parent / "twin", Recipe.model_validate(recipe))
    with new_folder(twin.merged) as part:
        save_tiny(part, initializer_range=0.4)
    twin.finish("merge", {"weights_sha256": weights_sha256(twin.merged)}, 1.0)
    both = chat_replies(twin.path, ChatOptions(prompt="Hello", compare=True))
    assert both["base"] == both["tuned"] != ""


def test_each_side_keeps_its_own_history(run: RunFolder, monkeypatch) -> None:
    import io

    seen: list[Conversation] = []
    plain = Conversation.reply

    def reply(self: Conversation, text: str, *more: object) -> object:
        if self not in seen:
            seen.append(self)
        return plain(self, text, *more)

    monkeypatch.setattr(Conversation, "reply", reply)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    last = chat_replies(run.path, ChatOptions(compare=True))
    assert len(seen) == 2
    for conversation, name in zip(seen, ("base", "tuned"), strict=True):
        assert [message["content"] for message in conversation.messages if message["role"] == "user"] == ["one", "two"]
        assert conversation.messages[-1]["content"] == last[name]


def test_columns_in_a_terminal(run: RunFolder, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    plain = chat_replies(run.path, ChatOptions(prompt="Hello", seed=3, compare=True))
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split("│")[0].strip() == "base"
    assert rows[0].split("│")[1].strip() == "tuned"
    assert len(rows) > 2
    monkeypatch.setenv("COLUMNS", "40")
    assert chat_replies(run.path, ChatOptions(prompt="Hello", seed=3, compare=True)) == plain
    assert capsys.readouterr().out.startswith("base:\n")


def test_what_cannot_be_compared_is_said(run: RunFolder) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        chat(run.path, ChatOptions(prompt="?", base=True, compare=True))
    with pytest.raises(UserError, match="a run's base and tuned model"):
        chat("no/such-model", ChatOptions(prompt="?", compare=True))  # said before anything is opened
    with pytest.raises(UserError, match="a run's base model"):
        chat(run.recipe.model.name, ChatOptions(prompt="?", base=True))


def test_only_whole_models_are_opened(run: RunFolder) -> None:
    """Beside them lie an adapter, a matrix and what a cut export left."""
    for name in ("tiny-lora.gguf", "tiny-imatrix.gguf", ".tiny-q4_k_m.gguf", ".tiny-q8_0-0123456789ab.gguf"):
        (run.gguf / name).parent.mkdir(exist_ok=True)
        (run.gguf / name).write_bytes(b"no model")
    assert chat(run.path, ChatOptions(prompt="Hello", seed=3)) != ""
    assert (run.gguf / "tiny-q8_0.gguf").is_file(), "made for the chat"


def test_the_command_gives_both_replies_as_json(run: RunFolder) -> None:
    words = ["chat", str(run.path), "--compare", "--prompt", "Hello", "--json"]
    done = click.testing.CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert set(value) == {"reply", "base_reply"}
    alone = click.testing.CliRunner().invoke(main, ["chat", str(run.path), "--prompt", "Hello", "--json"])
    assert json.loads(alone.stdout) == {"reply": value["reply"]}


def rows_of(left: list[str], right: list[str], width: int = 23) -> list[str]:
    """Rows after the head, with the pieces of both sides in turn."""
    rows: list[str] = []
    columns = Columns(["a", "b"], width, rows.append)
    for number in range(max(len(left), len(right))):
        for side, pieces in enumerate((left, right)):
            if number < len(pieces):
                columns.add(side, pieces[number])
    columns.end(0)
    columns.end(1)
    return [row.rstrip("\n") for row in rows[2:]]


def test_a_row_is_printed_when_both_sides_have_it() -> None:
    rows: list[str] = []
    columns = Columns(["a", "b"], 23, rows.append)
    columns.add(0, "one\ntwo\n")
    assert len(rows) == 2, "the head alone"
    columns.add(1, "eins\nzw")
    assert rows[2:] == ["one        │ eins\n"]
    columns.end(1)
    assert rows[3:] == ["two        │ zw\n"]
    columns.add(0, "three")
    assert len(rows) == 4
    columns.end(0)
    assert rows[4:] == ["three      │\n"]


def test_long_lines_break_at_spaces_and_nothing_is_lost() -> None:
    assert rows_of(["a quick brown fox"], ["0123456789abc"]) == ["a quick    │ 0123456789", "brown fox  │ abc"]
    assert rows_of(["x\n\ny"], []) == ["x          │", "           │", "y          │"]


def test_wide_characters_and_escapes_keep_the_bar_in_its_place() -> None:
    rows = rows_of(["北京北京北京"], ["\x1b[31m"])
    assert [wide(row.partition("│")[0]) for row in rows] == [11] * len(rows)
    assert "\\x1b[31m" in rows[0]


@pytest.mark.slow
def test_ctrl_c_ends_a_reply_and_not_the_program(tmp_path: Path) -> None:
    """A real process: a long reply is cut by SIGINT, the next question is answered, the end of input ends it."""
    words = [str(packaged_source().gguf), "--max-new-tokens", "2000", "--threads", "1"]
    environment = {**os.environ, "SSD_LITE_CACHE": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ssd_lite.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "chat", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"Write a long story about a ship.\n")
    child.stdin.flush()
    first = child.stdout.read(40)
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    child.stdin.write(b"Say hi.\n")
    child.stdin.close()
    deadline = time.monotonic() + 200
    rest = child.stdout.read()
    assert child.wait(timeout=max(1.0, deadline - time.monotonic())) == 0
    assert len(first) == 40
    assert rest.count(b"> ") == 2, "a prompt for the second question, and one at the end of input"
