"""What a user can get wrong, each through the command line: exit 2, one line that names the place and a mend."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_models import PACKAGED, cache_in, packaged_source, shared_cache

from ssd_lite.atomic import leftovers
from ssd_lite.cli import main
from ssd_lite.errors import UserError
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.checkup.hub import hub_cache, token_finding
from ssd_lite.stages.exports.importance import importance_of

TESTS = {"kind": "functional", "entry_point": "f", "cases": [[[1], 1]]}


def refusal(*words: str | Path) -> str:
    """The one line that a command ends with; its exit code is 2 and it shows no traceback."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    _, error, line = result.stderr.rpartition("Error: ")
    assert error
    return line.strip()


def recipe_file(folder: Path, **sections: Any) -> Path:
    """A recipe on the packaged model with these sections."""
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"model": {"name": PACKAGED}, **sections}))
    return path


def made_run(folder: Path, *settings: str) -> RunFolder:
    """A new run of the quickstart with these settings."""
    return RunFolder.create(folder / "run", load_recipe("quickstart", settings))


def problem_file(folder: Path, *lines: object) -> Path:
    """A JSONL file; objects become JSON, text stays as it is."""
    path = folder / "set.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def problem(name: str, prompt: str = "Write f.", **more: object) -> dict[str, object]:
    return {"id": name, "prompt": prompt, **more}


def sampling_refused(folder: Path, path: Path) -> str:
    """What the stage that samples says of a training set."""
    return refusal("sample", made_run(folder, f"problems.train={path}").path)


# -- the recipe ------------------------------------------------------------------------------------------------------


def test_unknown_key_gets_a_suggestion(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, sample={"temprature": 1.2})
    line = refusal("run", file, "--out", tmp_path / "r")
    assert str(file) in line
    assert "sample.temprature: unknown key; did you mean 'temperature'?" in line
    assert not (tmp_path / "r").exists()


def test_unknown_section_and_unknown_recipe(tmp_path: Path) -> None:
    assert "did you mean 'sample'?" in refusal("run", "quickstart", "--set", "smaple.n=2", "--out", tmp_path / "r")
    assert "did you mean 'quickstart'?" in refusal("run", "quikstart")
    assert "did you mean 'quickstart'?" in refusal("recipes", "show", "quikstart")


@pytest.mark.parametrize("value", ["0", "-0.5", ".nan", ".inf", "warm"])
def test_temperature_must_be_above_zero(value: str, tmp_path: Path) -> None:
    line = refusal("run", "quickstart", "--out", tmp_path / "r", "--set", f"sample.temperature={value}")
    assert "sample.temperature: " in line
    assert "got" in line
    typed = value.removeprefix(".")
    if typed != "warm":
        words = ("evaluate", "--model", PACKAGED, "--problems", "starter", f"--temperature={typed}")
        assert "--temperature: " in refusal(*words)


@pytest.mark.parametrize("value", ["0", "1.01", "-0.1"])
def test_top_p_must_be_a_share(value: str, tmp_path: Path) -> None:
    settings = ("--set", f"evaluate.tuned={{temperature: 0.6, top_p: {value}}}")
    assert "evaluate.tuned.top_p: " in refusal("run", "quickstart", "--out", tmp_path / "r", *settings)
    words = ("evaluate", "--model", PACKAGED, "--problems", "starter", "--temperature", "0.6", f"--top-p={value}")
    assert "--top-p: " in refusal(*words)


def test_temperature_one_without_truncation_trains_nothing(tmp_path: Path) -> None:
    law = [f"--set=sample.{setting}" for setting in ("temperature=1", "top_k=0", "top_p=1")]
    line = refusal("run", "quickstart", "--out", tmp_path / "r", *law)
    assert "zero expected gradient" in line
    assert "sample.null_arm: true" in line


def test_more_k_than_samples(tmp_path: Path) -> None:
    assert "pass@5" in refusal("run", "quickstart", "--out", tmp_path / "r", "--set", "evaluate.n=2")
    words = ("evaluate", "--model", PACKAGED, "--problems", "starter", "--temperature", "0.6", "--n", "2", "--k", "3")
    assert "pass@3" in refusal(*words)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, sample={"n": 0, "top_p": 2}, train={"lora_r": -1})
    line = refusal("run", file)
    assert all(key in line for key in ("sample.n", "sample.top_p", "train.lora_r"))


def test_a_setting_without_value() -> None:
    assert "--set: wants a.b=value, got 'train.max_steps'" in refusal("run", "quickstart", "--set", "train.max_steps")


# -- files -----------------------------------------------------------------------------------------------------------


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refusal("run", tmp_path / "none.yaml")
    utf16 = tmp_path / "utf16.yaml"
    utf16.write_text("model: {name: x}", encoding="utf-16")
    assert f"{utf16}: is not UTF-8" in refusal("run", utf16)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: {name: x}\nsample: [1,\n")
    assert f"{broken}:" in refusal("run", broken)
    assert str(tmp_path / "none.jsonl") in refusal("grade", tmp_path / "none.jsonl", "--problems", "starter")
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    assert str(folder) in refusal("grade", folder, "--problems", "starter")
    assert str(folder) in sampling_refused(tmp_path, folder)


NO_NAMES = ["~nosuchuser/x", "x" * 300, f"a/{'x' * 300}", f"{'x' * 300}.jsonl"]


@pytest.mark.parametrize("name", NO_NAMES, ids=["home", "long", "below", "jsonl"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every place where a command takes a name; refusal() fails where one ends in a traceback."""
    (tmp_path / "a").mkdir()
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    answers = problem_file(tmp_path, {"problem_id": "a", "index": 0, "program": "f = abs"})
    model = ("evaluate", "--temperature", "0.6", "--problems", "starter", "--model")
    for words in (
        *(["run", name], ["doctor", name], ["plan", name], ["compare", name], ["recipes", "show", name]),
        *(["diagnose", name], ["chat", name, "--prompt", "?"], ["export", name], [*model, name]),
        *([stage, name] for stage in ("sample", "curate", "train", "merge", "evaluate", "report", "status")),
        *(["push", name, "--what", "merged", "--dry-run"], ["compare", name, "--arm", "ssd"]),
        *([command, "quickstart", "--set", f"model.name={name}"] for command in ("run", "plan")),
        ["plan", "quickstart", "--set", f"problems.train={name}"],
        ["sample", made_run(tmp_path / "b", f"problems.train={name}").path],
        ["grade", name, "--problems", "starter"],
        ["grade", answers, "--problems", name],
        ["export", "m", "--to", "f16", "--adapter", name],
    ):
        line = refusal(*words)
        assert Path(name).name in line or "~nosuchuser" in line, (words, line)
    with pytest.raises(UserError, match="--imatrix"):
        importance_of(Path(name), tmp_path, 10)
    if name[0] == "~" or name.endswith(".jsonl"):
        return
    for words in (
        ["run", "quickstart", "--out", name],
        ["compare", "quickstart", "--out", name],
        [*model, PACKAGED, "--out", name],
        ["diagnose", PACKAGED, "--out", name],
        ["export", "m", "--to", "f16", "--out", name],
        ["plan", "quickstart", "--write", name],
        ["grade", answers, "--problems", "starter", "--out", name],
        ["recipes", "cloud", "--copy", name],
    ):
        assert "File name too long" in refusal(*words)


def test_a_home_folder_is_expanded_where_no_shell_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = made_run(tmp_path)
    assert CliRunner().invoke(main, ["status", "~/run"]).exit_code == 0
    assert CliRunner().invoke(main, ["recipes", "cloud", "--copy=~/cloud"]).exit_code == 0
    assert any((tmp_path / "cloud").iterdir())
    assert "ssd-lite sample" in refusal("curate", f"~/{run.path.name}")


def test_a_place_in_the_environment_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setenv("SSD_LITE_CACHE", "~nosuchuser/cache")
    assert "SSD_LITE_CACHE: no home folder is known for '~nosuchuser'" in refusal("chat", gguf, "--prompt", "?")
    monkeypatch.setenv("OLLAMA_MODELS", "~nosuchuser/models")
    assert "OLLAMA_MODELS: no home folder" in refusal("chat", "ollama:some", "--prompt", "?")
    with pytest.raises(UserError, match="HF_HOME: no home folder"):
        hub_cache({"HF_HOME": "~nosuchuser/hub"})
    assert token_finding({"HF_TOKEN_PATH": "~nosuchuser/token"}).status == "absent"


def test_a_name_that_the_hub_does_not_allow() -> None:
    pytest.importorskip("huggingface_hub")
    for name in ("owner/-name", "owner/a--b", "owner/a.git"):
        assert f"model.name: {name}: is neither a local folder nor a model on the Hub" in refusal(
            "chat", name, "--prompt", "?"
        )


def test_missing_problem_set_and_misspelt_name(tmp_path: Path) -> None:
    assert str(tmp_path / "none.jsonl") in sampling_refused(tmp_path, tmp_path / "none.jsonl")
    line = refusal("grade", problem_file(tmp_path, {}), "--problems", "humanevil")
    assert "Did you mean humaneval?" in line


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = problem_file(tmp_path, problem("a"), '{"id": "b", "prompt": "cut', problem("c"))
    assert sampling_refused(tmp_path, path).startswith(f"{path}:2: ")


def test_line_without_prompt_is_named(tmp_path: Path) -> None:
    path = problem_file(tmp_path, problem("a"), {"id": "b", "text": "?"})
    assert sampling_refused(tmp_path, path).startswith(f"{path}:2: ")


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    path = problem_file(tmp_path, problem("a"), problem("b", "Write g."), problem("a", "Write h."))
    line = sampling_refused(tmp_path, path)
    assert line.startswith(f"{path}:3: ")
    assert "line 1" in line


def test_empty_set(tmp_path: Path) -> None:
    assert str(problem_file(tmp_path)) in sampling_refused(tmp_path, tmp_path / "set.jsonl")


def test_training_prompt_in_the_evaluation_set(tmp_path: Path) -> None:
    path = problem_file(tmp_path, problem("a", tests=TESTS))
    run = made_run(tmp_path, f"problems.train={path}", f"problems.evaluate={path}")
    assert "training prompts are in the evaluation set: a" in refusal("sample", run.path)


def test_evaluation_set_without_tests(tmp_path: Path) -> None:
    path = problem_file(tmp_path, problem("a"))
    assert "no tests" in refusal("grade", problem_file(tmp_path, problem("a")), "--problems", path)


def test_prompt_longer_than_the_context(tmp_path: Path) -> None:
    packaged_source()
    path = problem_file(tmp_path, problem("short"), problem("far-too-long", "one word after the other " * 2500))
    with cache_in(shared_cache()):
        line = sampling_refused(tmp_path, path)
    assert "problem far-too-long: " in line
    assert "context of 8192 tokens" in line


# -- folders ---------------------------------------------------------------------------------------------------------


def test_no_write_permission(tmp_path: Path) -> None:
    """Root may write where modes forbid it, but nobody may write below a file."""
    file = tmp_path / "file"
    file.write_text("")
    line = refusal("run", "quickstart", "--out", file / "run")
    assert f"{file / 'run'}: cannot be written" in line
    words = ("evaluate", "--model", PACKAGED, "--problems", "starter", "--temperature", "0.6")
    assert str(file / "e") in refusal(*words, "--out", file / "e")


def test_the_advice_for_a_folder_that_cannot_be_written_fits_the_command(tmp_path: Path) -> None:
    """A lock file that is a folder cannot be opened by anyone, root neither: as on a read-only disk."""
    run = made_run(tmp_path)
    (run.path / ".lock").mkdir()
    for command in ("sample", "curate", "train", "merge", "report"):
        line = refusal(command, run.path)
        assert "cannot be written" in line
        assert "--out" not in line
        assert "copy it and name the copy" in line
    words = ("evaluate", "--model", PACKAGED, "--problems", "starter", "--temperature", "0.6")
    (tmp_path / "e" / ".lock").mkdir(parents=True)
    assert "--out" in refusal(*words, "--out", tmp_path / "e")


def test_a_full_disk_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses what makes a file too large, as a full disk does: first the manifest and the log, then all."""
    run = made_run(tmp_path)
    for text in ("log", "manifest"):
        run.note(text, "x" * 3000)
        run.log("x" * 3000)
    before, limits = run.manifest(), resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr("ssd_lite.stages.merge.merge", lambda run: run.note("more", 1))
    try:
        for limit, file in ((200, run.manifest_file), (0, run.path / ".lock")):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            line = refusal("merge", run.path)
            assert line == f"{file}: cannot be written: File too large."
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.manifest() == before
    assert leftovers(run.path) == []


def test_grades_do_not_replace_the_problems(tmp_path: Path) -> None:
    problems = problem_file(tmp_path, problem("a", tests=TESTS))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem_id": "a", "index": 0, "program": "f = abs"}) + "\n")
    before = problems.read_bytes()
    assert "would replace the file of --problems" in refusal("grade", rows, "--problems", problems, "--out", problems)
    assert problems.read_bytes() == before


def test_run_folder_with_another_recipe(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    run.samples.write_text("{}\n")
    line = refusal("run", "quickstart", "--out", run.path, "--set", "sample.seed=77")
    assert "stage 'sample' was started with another recipe: sample.seed: 0 → 77" in line
    assert "--out" in line


def test_folder_with_other_things_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    assert "is no run folder" in refusal("run", "quickstart", "--out", tmp_path)
    for command in ("sample", "curate", "train", "merge", "evaluate", "report", "status"):
        assert "no recipe.yaml in it" in refusal(command, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_recipe_changed_under_a_finished_stage(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    run.finish("sample", {"samples": 1}, 1.0)
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("temperature: 1.", "temperature: 2.", 1))
    assert "recipe.yaml was changed after the stage 'sample'" in refusal("sample", run.path)


@pytest.mark.parametrize("files", [[], ["config.json"], ["adapter_config.json"]], ids=["empty", "half", "adapter"])
def test_folder_that_is_no_model(files: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    run = made_run(tmp_path, f"model.name={folder}")
    for words in (
        ["sample", run.path],
        ["export", folder, "--to", "f16"],
        ["chat", folder, "--prompt", "?"],
    ):
        line = refusal(*words)
        assert str(folder) in line
        assert "model" in line


def test_name_that_is_no_model(tmp_path: Path) -> None:
    line = refusal("sample", made_run(tmp_path, "model.name=smolm2").path)
    assert "no model named 'smolm2'" in line
    assert PACKAGED in line


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"not a model")
    assert "is no GGUF file" in refusal("chat", file, "--prompt", "?")


@pytest.mark.slow
def test_a_gguf_that_cannot_chat_says_what_it_is(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from gguf import GGUFWriter

    whole = packaged_source().gguf
    assert whole is not None
    for size in (1000, 40_000_000):
        cut = tmp_path / "cut.gguf"
        with open(whole, "rb") as file:
            cut.write_bytes(file.read(size))
        line = refusal("chat", cut, "--prompt", "?")
        assert f"{cut}: is no whole GGUF" in line
        assert "Fetch or write the file again" in line
    for kind, words in {"adapter": "is a LoRA adapter", "imatrix": "its kind is 'imatrix'"}.items():
        file = tmp_path / f"{kind}.gguf"
        writer = GGUFWriter(file, "llama")
        writer.add_type(kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        line = refusal("chat", file, "--prompt", "?")
        assert f"{file}: is " in line
        assert words in line
        assert ("--lora adapter.gguf" in line) == (kind == "adapter")


def test_adapter_of_another_base(tmp_path: Path) -> None:
    packaged_source()
    run = made_run(tmp_path)
    run.finish("train", {"steps": 1}, 1.0)
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    (run.adapter / "ssd_lite_base.json").write_text(json.dumps({"name": "other", "weights_sha256": "a" * 64}))
    with cache_in(shared_cache()):
        line = refusal("merge", run.path)
    assert line.startswith(f"{run.adapter}: was trained on other with other weights")
    assert not run.merged.exists()


# -- options ---------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    assert "--seed: goes with --model" in refusal("evaluate", run.path, "--seed", "0")
    assert "--model: is missing" in refusal("evaluate", "--problems", "starter")
    assert f"ssd-lite train {run.path}" in refusal("export", run.path, "--to", "f16")
    assert "--json: needs --prompt" in refusal("chat", run.path, "--json")
    folder = tmp_path / "model"
    folder.mkdir()
    assert "--to: is missing" in refusal("export", folder)
    assert "no GGUF type 'q9'" in refusal("export", folder, "--to", "f16,q9")
    assert "is no folder" in refusal("export", tmp_path / "none", "--to", "f16")


def test_a_run_and_a_model_at_once(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    line = refusal("evaluate", run.path, "--model", PACKAGED)
    assert f"--model: and the folder {run.path} exclude each other" in line
    assert "Leave out --model to evaluate the run" in line


@pytest.mark.parametrize("words", [["--to", "q8_0"], ["--imatrix"], ["--out", "x"], ["--no-check"]])
def test_the_adapter_alone_takes_no_option_of_whole_models(words: list[str], tmp_path: Path) -> None:
    line = refusal("export", made_run(tmp_path).path, "--adapter-only", *words)
    assert line.startswith(f"{words[0]}: does not go with --adapter-only")
