"""The regression guard: base and tuned on other sets, drops in words, in red, on the page and as an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("peft")

from click.testing import CliRunner
from test_pipeline import finished_run, recipe_of
from tiny_models import save_tiny

from ssd_lite.cli import main
from ssd_lite.engines.model_source import resolve_model
from ssd_lite.errors import Stopped, UserError
from ssd_lite.grading.answers import final_text
from ssd_lite.problems.questions import load_questions
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import load_recipe
from ssd_lite.recipe_measuring import Guard
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import answers
from ssd_lite.stages.answers import answer, read_samples
from ssd_lite.stages.evaluate import arm_answering, evaluate
from ssd_lite.stages.evaluation.guard import guard_names
from ssd_lite.stages.evaluation.guard_verdict import drops, failure
from ssd_lite.stages.merge import merge
from ssd_lite.stages.pipeline import check_machine
from ssd_lite.stages.report import report, table
from ssd_lite.stages.sample import sample
from ssd_lite.stages.weights import base_weights

COUNT = 12
ENTRY: dict[str, Any] = {
    "name": "gsm8k",
    "problems": {"name": "questions:gsm8k.jsonl", "count": 40},
    "n": 1,
    "arms": {
        arm: {
            "right": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1},
            "samples": 40,
            "cap_rate": 0.1,
            "no_code_rate": 0.0,
            "no_answer_rate": 0.05,
            "mean_tokens": tokens,
            "hedging_per_1000_words": hedging,
            "hedging_words": {"wait": 7, "hmm": 0},
            "words": 1234,
            "settings": {"max_new_tokens": 300},
        }
        for arm, mean, tokens, hedging in (("base", 0.6, 120.0, 5.25), ("tuned", 0.35, 80.5, 1.5))
    },
    "difference": {"mean": -0.25, "low": -0.4, "high": -0.1},
    "mcnemar_p": 0.01,
    "dropped": True,
    "sentence": "Loss: the share of right answers fell by 25.0 points [-40.0, -10.0] over 40 problems.",
    "warnings": [],
}


def write_questions(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), encoding="utf-8")
    return path


def merged_run(folder: Path, evaluate_section: dict[str, Any]) -> RunFolder:
    """A run of a tiny random model whose tuned model is merged, and is another one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_tiny(folder / "base")
    recipe = {
        "name": "tiny",
        "threads": 1,
        "model": {"name": str(base)},
        "problems": {"train": "starter", "evaluate": f"questions:{folder / 'own.jsonl'}"},
        "evaluate": evaluate_section,
    }
    run = RunFolder.create(folder / "run", Recipe.model_validate(recipe))
    torch.manual_seed(0)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], r=4))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    network.save_pretrained(run.adapter)
    recorded = {"name": str(base), "revision": None, "weights_sha256": resolve_model(str(base)).weights_sha256}
    (run.adapter / "ssd_lite_base.json").write_text(json.dumps(recorded))
    run.finish("train", {"steps": 3}, 1.0)
    merge(run)
    return run


def what_the_base_says(run: RunFolder, folder: Path, cap: int) -> list[tuple[str, str]]:
    """Questions whose right answer is the one that the base gives, so that any other model falls behind."""
    asked = [(f"Question {number}?", "?") for number in range(2 * COUNT)]
    problems = load_questions(write_questions(folder / "falls.jsonl", asked))
    settings = run.recipe.evaluate.base.settings(cap)
    how = arm_answering(run.recipe, base_weights(run, "llama_cpp"), run.recipe.evaluate.base)
    answer(problems, type(how)(**{**vars(how), "settings": settings, "n": 1}), folder / "said.jsonl", "ask")
    said = {sample.problem_id: final_text(sample.completion) for sample in read_samples(folder / "said.jsonl")}
    # The ids hold line numbers and fix the seeds, so every line stays; what has no words is asked in vain.
    return [(q, said[p.id] or "unsayable") for p, (q, _) in zip(problems, asked, strict=True)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_LITE_CACHE", str(folder / "cache"))
        tests = {"kind": "functional", "entry_point": "one", "cases": [[[], 1]]}
        programs = [{"id": f"p{n}", "prompt": f"Write one() {n}.", "tests": tests} for n in range(2)]
        (folder / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in programs))
        write_questions(folder / "own.jsonl", [(f"Own {number}?", "nobody says this") for number in range(4)])
        guard = [
            {"problems": f"questions:{folder / 'falls.jsonl'}", "max_new_tokens": 12},
            {"problems": str(folder / "programs.jsonl"), "n": 2, "limit": 1, "max_new_tokens": 6},
        ]
        law = {"temperature": 0.7}
        section = {"n": 2, "k": [1], "base": law, "tuned": law, "max_new_tokens": 8, "guard": guard}
        run = merged_run(folder, section)
        write_questions(folder / "falls.jsonl", what_the_base_says(run, folder, cap=12))
        evaluate(run)
    return run


def test_each_set_is_answered_by_both_arms_and_a_drop_is_found(evaluated: RunFolder) -> None:
    summary = evaluated.require("evaluate")
    falls, programs = summary["guard"]
    assert (falls["name"], falls["dropped"], falls["problems"]["count"]) == ("falls", True, 2 * COUNT)
    assert falls["arms"]["base"]["right"]["mean"] > 0.9 > 0.1 > falls["arms"]["tuned"]["right"]["mean"]
    assert falls["difference"]["high"] < 0
    assert falls["sentence"].startswith("Loss: the share of right answers fell by")
    assert (programs["name"], programs["dropped"], programs["arms"]["tuned"]["samples"]) == ("programs", False, 2)
    assert programs["arms"]["base"]["no_code_rate"] == 1.0
    assert json.loads((evaluated.path / "evaluations" / "guard.json").read_text()) == summary["guard"]
    for name, cap, count in (("falls", 12, 2 * COUNT), ("programs", 6, 2)):
        for side in ("base", "tuned"):
            samples = read_samples(evaluated.path / "evaluations" / "guard" / name / side / "samples.jsonl")
            assert len(samples) == count
            assert {sample.settings.max_new_tokens for sample in samples} == {cap}
    tiers = {
        name: json.loads((evaluated.path / f"evaluations/guard/{name}/base/report.json").read_text())["grader"]["tier"]
        for name in ("falls", "programs")
    }
    assert tiers["falls"] == "no programs"
    assert tiers["programs"] != "no programs"
    # Random models never end by themselves: the cap and the key that sets it are named.
    assert any(
        "of tuned on falls" in warning and "raise max_new_tokens of this guard" in warning
        for warning in summary["warnings"]
    )
    assert any("of base (" in w and "raise evaluate.max_new_tokens" in w for w in summary["warnings"])


def again(run: RunFolder) -> RunFolder:
    """The run as if it had been killed before `evaluate` was noted as done."""
    manifest = run.manifest()
    del manifest["stages"]["evaluate"]
    run.manifest_file.write_text(json.dumps(manifest))
    return run


def test_a_killed_guard_goes_on_where_it_was(evaluated: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_LITE_CACHE", str(evaluated.path.parent / "cache"))
    summary = evaluated.require("evaluate")
    file = evaluated.path / "evaluations" / "guard" / "falls" / "tuned" / "samples.jsonl"
    whole = file.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:5])
    file.write_bytes(kept)
    (file.parent / "grades.jsonl").unlink()
    again(evaluated)
    monkeypatch.setattr(answers, "stop_requested", lambda: True)
    with pytest.raises(Stopped, match="guard falls tuned stopped after 5 of 24"):
        evaluate(evaluated)
    monkeypatch.setattr(answers, "stop_requested", lambda: False)
    once_more = evaluate(evaluated)
    assert file.read_bytes().startswith(kept)
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert once_more["guard"] == summary["guard"]


def test_strict_fails_says_what_fell_and_prints_it_red(evaluated: RunFolder) -> None:
    plain = CliRunner().invoke(main, ["evaluate", str(evaluated.path)], color=True)
    assert plain.exit_code == 0
    (line,) = [line for line in plain.output.splitlines() if "DROP" in line]
    assert line.startswith("\x1b[31m")
    assert "guard falls: " in click.unstyle(line)
    strict = CliRunner().invoke(main, ["evaluate", str(evaluated.path), "--strict"])
    assert strict.exit_code == 1
    assert "\x1b" not in strict.output
    assert "guard falls: Loss: the share of right answers fell by" in strict.stderr
    as_json = CliRunner().invoke(main, ["evaluate", str(evaluated.path), "--strict", "--json"])
    value = json.loads(as_json.stdout)
    assert (as_json.exit_code, value["exit_code"], len(value["guard"])) == (1, 1, 2)
    assert "guard falls" in value["error"]


def test_status_lists_the_arms_of_the_guard(evaluated: RunFolder) -> None:
    out = CliRunner().invoke(main, ["status", str(evaluated.path)]).output
    assert f"arm guard/falls/tuned: {2 * COUNT} samples, {2 * COUNT} graded" in out
    assert "arm guard:" not in out


def test_strict_goes_with_a_run() -> None:
    result = CliRunner().invoke(main, ["evaluate", "--model", "m", "--strict"])
    assert (result.exit_code, "--strict" in result.output) == (2, True)


# -- a finished run, with what the guard found -------------------------------------------------------------------------


def guarded(run: RunFolder, **summary: Any) -> RunFolder:
    """Put findings into the summary of `evaluate`, as the stage leaves them."""
    manifest = run.manifest()
    manifest["stages"]["evaluate"]["summary"] = {"verdict": "gain", "sentence": "Gain.", "guard": [], **summary}
    run.manifest_file.write_text(json.dumps(manifest))
    if summary.get("guard"):
        (run.path / "evaluations" / "guard.json").write_text(json.dumps(summary["guard"]))
    return run


def test_a_whole_run_is_finished_before_strict_fails(tmp_path: Path) -> None:
    run = guarded(finished_run(tmp_path / "r"), guard=[ENTRY])
    words = ["run", str(recipe_of(run)), "--out", str(run.path)]
    assert CliRunner().invoke(main, words).exit_code == 0
    result = CliRunner().invoke(main, [*words, "--strict"])
    assert result.exit_code == 1
    assert f"Report: {run.report}" in result.stdout
    assert "guard gsm8k: Loss: the share of right answers fell by 25.0 points" in result.stderr
    value = json.loads(CliRunner().invoke(main, [*words, "--strict", "--json"]).stdout)
    assert "guard gsm8k: 60.0 % to 35.0 %" in value["table"]
    assert "\x1b" not in value["table"]


def test_a_loss_on_the_evaluation_set_fails_too(tmp_path: Path) -> None:
    run = guarded(finished_run(tmp_path / "r"), verdict="loss", sentence="Loss: pass@1 fell.")
    words = ["run", str(recipe_of(run)), "--out", str(run.path), "--strict"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, "evaluation set: Loss: pass@1 fell." in result.stderr) == (1, True)


def test_nothing_fails_where_nothing_fell(tmp_path: Path) -> None:
    unharmed = {**ENTRY, "dropped": False}
    run = guarded(finished_run(tmp_path / "r"), guard=[unharmed])
    words = ["run", str(recipe_of(run)), "--out", str(run.path), "--strict"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert failure({"verdict": "gain", "guard": [unharmed]}) is None
    assert drops({"verdict": "no difference shown"}) == []  # a run from before there was a guard


def test_the_report_has_a_section_and_the_table_a_red_line(tmp_path: Path) -> None:
    run = guarded(finished_run(tmp_path / "r"), guard=[ENTRY])
    run.report.unlink()
    report(run)
    page = run.report.read_text(encoding="utf-8")
    assert "<h2>Guard</h2>" in page
    assert f'<div class="verdict loss"><p>gsm8k: {ENTRY["sentence"]}</p></div>' in page
    for figure in ("−25.0", "5.25", "−3.75", "80.5", "wait 7, hmm 0", "1,234", "at most 300 tokens"):
        assert figure in page
    assert "only the guard&#x27;s were measured (gsm8k)" in page
    lines = table(run).splitlines()
    assert lines[-1].startswith("\x1b[31m")
    assert "−25.0 [−40.0, −10.0] points" in lines[-1]
    assert f"Guard gsm8k: {ENTRY['sentence']}" in (run.merged / "README.md").read_text()


def test_a_run_without_a_guard_has_no_section(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    page = run.report.read_text(encoding="utf-8")
    assert "<h2>Guard</h2>" not in page
    assert "other tasks were not measured" in page


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    run.report.unlink()
    (run.path / "evaluations" / "guard.json").write_text('[{"name": "x"}]')
    with pytest.raises(UserError, match=r"guard\.json: is damaged"):
        report(run)


# -- before any work ---------------------------------------------------------------------------------------------------


def test_each_set_has_a_folder_of_its_own() -> None:
    names = ["questions:data/gsm 8k.jsonl", "humaneval", "questions:other/gsm 8k.jsonl", "mbpp:test", "questions:..."]
    assert guard_names([Guard(problems=name) for name in names]) == [
        "gsm-8k",
        "humaneval",
        "gsm-8k~2",
        "mbpp-test",
        "set",
    ]


@pytest.mark.parametrize(
    ("rows", "what"),
    [(None, "cannot be read"), ([("Own 1?", "2")], "training prompts are in the evaluation set")],
)
def test_sampling_refuses_a_guard_that_cannot_be_used(
    tmp_path: Path, rows: list[tuple[str, str]] | None, what: str
) -> None:
    train = write_questions(tmp_path / "train.jsonl", [("Own 1?", "2"), ("Own 2?", "3")])
    file = tmp_path / "guard.jsonl"
    if rows is not None:
        write_questions(file, rows)
    recipe = {
        "name": "r",
        "model": {"name": "smollm2-135m-instruct"},
        "problems": {"train": f"questions:{train}", "evaluate": "starter"},
        "evaluate": {"guard": [{"problems": f"questions:{file}"}]},
    }
    run = RunFolder.create(tmp_path / "run", Recipe.model_validate(recipe))
    with pytest.raises(UserError, match=what):
        sample(run)
    assert not run.samples.exists()


def test_a_mistake_in_a_guard_names_its_keys() -> None:
    with pytest.raises(UserError, match=r"evaluate\.guard\.0\.max_tokens: unknown key.*did you mean 'max_new_tokens'"):
        load_recipe("quickstart", ["evaluate.guard=[{problems: humaneval, max_tokens: 3}]"])


def test_a_run_of_questions_alone_needs_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise UserError("no sandbox holds here.")

    monkeypatch.setattr("ssd_lite.grading.tiers.choose_tier", nowhere)
    asked = ["problems.evaluate=questions:a.jsonl", "evaluate.guard=[{problems: 'questions:b.jsonl'}]"]
    check_machine(load_recipe("quickstart", asked))
    for more in ("curate.only_correct=true", "evaluate.guard=[{problems: humaneval}]", "problems.evaluate=starter"):
        with pytest.raises(UserError, match="no sandbox holds"):
            check_machine(load_recipe("quickstart", [*asked, more]))
