"""The commands: their help, their one JSON object, their exit codes, and docs/cli.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
from cli_page import PAGE, commands, help_of, page
from click.testing import CliRunner
from tiny_models import PACKAGED, cache_in, packaged_source, shared_cache

from ssd_lite import __version__
from ssd_lite.cli import main
from ssd_lite.command_line.answers import Answer, answers_json
from ssd_lite.command_line.evaluating import BLOCKS, SANDBOXES
from ssd_lite.command_line.model_options import ENGINES, results_folder
from ssd_lite.errors import Stopped, UserError
from ssd_lite.interrupt import listen
from ssd_lite.recipe_file import load_recipe, packaged_recipes
from ssd_lite.recipe_measuring import Evaluate
from ssd_lite.run_folder import RunFolder

STAGES = ["sample", "curate", "train", "merge", "evaluate", "export", "report"]


@pytest.fixture(autouse=True)
def _own_signals() -> object:
    """A stage command listens to SIGINT; pytest wants its own handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield None
    for number, handler in before.items():
        signal.signal(number, handler)


def test_page_is_the_help_of_every_command() -> None:
    """SSD_LITE_WRITE_DOCS=1 pytest tests/test_cli.py -k page   writes the page anew."""
    if os.environ.get("SSD_LITE_WRITE_DOCS") == "1":
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_has_an_example_that_parses(words: tuple[str, ...]) -> None:
    text = help_of(words)
    example = text.partition("Example:")[2]
    typed = [line.split() for line in example.replace("\\\n", " ").splitlines() if line.strip()]
    assert typed
    assert all(line[0] == "ssd-lite" for line in typed)
    for line in typed:
        arguments = [word.strip('"') for word in line[1:] if not word.startswith(">")]
        command: click.Command = main
        while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
            command = command.commands[arguments.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert all(word in options for word in arguments if word.startswith("--"))


def test_every_command_but_the_group_takes_json() -> None:
    assert all("--json" in help_of(words) for words in commands() if words)


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.split()[-1] == __version__


def test_choices_are_those_of_the_recipe() -> None:
    fields = Evaluate.model_fields
    assert set(SANDBOXES.choices) | {"none"} == set(get_args(fields["sandbox"].annotation))
    # A server needs its command, which stands in a recipe.
    assert set(ENGINES.choices) | {"server"} == set(get_args(fields["engine"].annotation))
    assert set(BLOCKS.choices) == set(get_args(fields["block"].annotation))


def answer_of(error: Exception | None, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that prints on the way and then answers or fails."""

    @click.command()
    @answers_json
    def command(as_json: bool) -> Answer:
        print("a library speaks")
        if error:
            raise error
        return Answer({"number": 1}, "one")

    result = CliRunner().invoke(command, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_json_is_one_object_on_stdout_and_text_on_stderr() -> None:
    code, out, err = answer_of(None, "--json")
    assert (code, json.loads(out)) == (0, {"number": 1})
    assert err == "a library speaks\none\n"
    assert answer_of(None) == (0, "a library speaks\none\n", "")


def test_failures_are_one_line_and_one_object() -> None:
    code, out, err = answer_of(UserError("is odd.", where="f:3", next_step="Make it even."), "--json")
    assert code == 2
    assert err.splitlines()[-1] == "Error: f:3: is odd. Make it even."
    failure = json.loads(out)
    assert (failure["what"], failure["where"], failure["next_step"]) == ("is odd.", "f:3", "Make it even.")
    code, out, _ = answer_of(Stopped("half way."), "--json")
    assert (code, json.loads(out)["stopped"]) == (75, True)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["sample"], "Missing argument 'DIR'"),
        (["sample", "r", "--nope"], "No such option"),
        (["samples", "r"], "No such command 'samples'"),
        (["--nope", "sample", "r"], "No such option"),
        (["recipes", "nope"], "No such command 'nope'"),
        (["plan", "quickstart", "--price", "nan"], "Invalid value for '--price'"),
        (["status", "x" * 300], "File name too long"),
        (["status", "none"], "no recipe.yaml in it"),
        (["grade", "s.jsonl"], "Missing option '--problems'"),
    ],
)
def test_whatever_is_typed_a_failure_is_one_object(words: list[str], wanted: str) -> None:
    result = CliRunner().invoke(main, [*words, "--json"])
    failure = json.loads(result.stdout)
    assert result.exit_code == failure["exit_code"] == 2
    assert wanted in failure["error"]
    assert "Error: " in result.stderr
    assert CliRunner().invoke(main, words).stdout == ""


def test_a_bug_is_an_object_too_and_a_failure_beside_an_answer_is_one_object(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    run.note("stages", {"curate": {"settings_digest": run.settings_digest("curate")}})  # no summary in it
    run.train_rows.write_text("")
    result = CliRunner().invoke(main, ["curate", str(run.path), "--json"])
    assert isinstance(result.exception, KeyError)
    assert json.loads(result.stdout) == {"error": "KeyError: 'summary'", "exit_code": 1, "stopped": False}
    missing = ["doctor", "quickstart", "--set", f"problems.train={tmp_path / 'none.jsonl'}", "--limit", "1", "--json"]
    found = CliRunner().invoke(main, missing)
    value = json.loads(found.stdout)
    assert (found.exit_code, value["exit_code"], value["fit"]) == (2, 2, False)


def test_letters_that_stdout_cannot_take_are_escaped(tmp_path: Path) -> None:
    """A file name whose bytes are no UTF-8, and a terminal that knows ASCII alone."""
    name = os.fsencode(tmp_path) + b"/\xff"
    start = [sys.executable, "-m", "ssd_lite"]
    odd = subprocess.run([*start, "status", name, "--json"], capture_output=True, check=False)
    assert (odd.returncode, json.loads(odd.stdout)["where"]) == (2, os.fsdecode(name))
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for more in ([], ["--json"]):
        done = subprocess.run([*start, "plan", "quickstart", *more], capture_output=True, check=False, env=ascii_only)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    run.note("stages", {"curate": {"settings_digest": run.settings_digest("curate")}})  # no summary in it
    run.train_rows.write_text("")
    result = CliRunner().invoke(main, ["curate", str(run.path)])
    assert isinstance(result.exception, KeyError)
    assert result.exit_code == 1
    assert "Traceback" in run.log_file.read_text()


def test_recipes(tmp_path: Path) -> None:
    def object_of(*words: str) -> dict[str, object]:
        return json.loads(CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False).stdout)

    assert [entry["name"] for entry in object_of("recipes")["recipes"]] == list(packaged_recipes())  # type: ignore[index,attr-defined]
    assert object_of("recipes", "show", "quickstart") == load_recipe("quickstart").model_dump(mode="json")
    assert object_of("recipes", "schema")["title"] == "Recipe"
    mine = tmp_path / "mine.yaml"
    mine.write_text(CliRunner().invoke(main, ["recipes", "show", "quickstart"]).stdout)
    assert load_recipe(str(mine), ["name=quickstart"]) == load_recipe("quickstart")
    schema = CliRunner().invoke(main, ["recipes", "schema"]).stdout
    assert json.loads(schema) == object_of("recipes", "schema")


def test_stage_before_its_time_names_the_one_to_type(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    for stage, before in [*zip(STAGES[1:5], STAGES[:4], strict=True), ("export", "train"), ("report", "evaluate")]:
        result = CliRunner().invoke(main, [stage, str(run.path)])
        assert result.exit_code == 2, stage
        assert f"ssd-lite {before} {run.path}" in result.stderr


def test_status_of_a_new_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    run.metrics.write_text('{"step":1,"loss":2.0,"crc":"not whole')
    result = CliRunner().invoke(main, ["status", str(run.path), "--json"], catch_exceptions=False)
    seen = json.loads(result.stdout)
    assert (seen["next"], seen["in_use_by"], seen["last_step"]) == ("sample", None, None)
    assert seen["counts"] == {"samples": 0, "training_rows": 0, "steps": 0}
    assert list(seen["stages"]) == STAGES


def test_grade_answers_with_counts(tmp_path: Path) -> None:
    tests = {"kind": "functional", "entry_point": "twice", "cases": [[[2], 4]]}
    (tmp_path / "set.jsonl").write_text(json.dumps({"id": "p", "prompt": "Double.", "tests": tests}) + "\n")
    programs = ["def twice(x): return 2 * x", "def twice(x): return x"]
    rows = [{"problem_id": "p", "index": n, "program": program} for n, program in enumerate(programs)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["grade", str(tmp_path / "answers.jsonl"), "--problems", str(tmp_path / "set.jsonl"), "--json"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "grades.jsonl")], catch_exceptions=False)
    done = json.loads(result.stdout)
    assert (done["verdicts"], done["pass@1"]) == ({"pass": 1, "wrong_answer": 1}, 0.5)
    grades = [json.loads(line)["verdict"] for line in (tmp_path / "grades.jsonl").read_text().splitlines()]
    assert grades == ["pass", "wrong_answer"]


def test_evaluate_a_model_without_a_run(tmp_path: Path) -> None:
    packaged_source()
    words = [
        *("evaluate", "--model", PACKAGED, "--problems", "starter", "--limit", "2", "--n", "1", "--temperature", "0.6"),
        *("--top-k", "0", "--seed", "0", "--max-new-tokens", "4", "--threads", "1", "--out", str(tmp_path / "e")),
    ]
    with cache_in(shared_cache()):
        result = CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False)
        other = CliRunner().invoke(main, [*words, "--top-k", "5"])
    done = json.loads(result.stdout)
    assert (done["samples"], done["seed"], done["k"]) == (2, 0, [1])
    assert done["settings"] == {"temperature": 0.6, "top_k": 0, "top_p": 0.8, "min_p": 0.0, "max_new_tokens": 4}
    assert other.exit_code == 2
    assert "top_k: 0 → 5" in other.stderr


def test_a_second_interrupt_stops_at_once_and_can_go_on(tmp_path: Path) -> None:
    """A stage that gets a second Ctrl-C ends with 75 and not with a traceback."""
    from ssd_lite.command_line.process import opened_run

    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))

    def work() -> None:
        with opened_run(run.path, "sample"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    import ssd_lite.interrupt as wish

    try:
        with pytest.raises(Stopped):
            work()
    finally:
        wish._requested = False
        listen()


def test_module_and_script_are_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ssd_lite", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"ssd-lite, version {__version__}\n"


def test_default_folders_keep_dots_and_cut_endings() -> None:
    assert results_folder("evaluations", "meta/Llama-3.1-8B", "mbpp:test") == Path("evaluations/Llama-3.1-8B-mbpp-test")
    assert results_folder("diagnoses", "a/m.Q8_0.gguf", "b/set.jsonl", "1.1") == Path("diagnoses/m.Q8_0-set-1.1")
