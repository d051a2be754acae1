"""What an export measures of its files, on which texts, and what it says about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
from tiny_models import save_tiny

from ssd_lite.engines.scoring.divergence import Divergence
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError
from ssd_lite.interrupt import listen
from ssd_lite.journal import Journal
from ssd_lite.recipe import Recipe
from ssd_lite.records import Sample, SamplingSettings, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.export import export_folder
from ssd_lite.stages.exports import check as export_check
from ssd_lite.stages.exports import check_texts
from ssd_lite.stages.exports.check import KL_LIMITS, Replying, bits, check_exported
from ssd_lite.stages.exports.check_texts import run_texts, starter_texts
from ssd_lite.stages.pages.gguf_section import check_lines

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture(scope="module")
def done(folder: Path) -> dict:
    """A whole export of a random model, which never stops by itself."""
    return export_folder(folder, ["q8_0", "f16"], folder.parent / "out", threads=1)


def test_each_file_is_measured_against_the_model(done: dict) -> None:
    checks = done["checks"]
    assert checks["reference"]["measured"] is True
    assert checks["reference"]["words"].startswith("the model folder under transformers")
    assert 0 < checks["files"]["f16"]["kl"] < checks["files"]["q8_0"]["kl"] < KL_LIMITS[8]
    for found in checks["files"].values():
        assert found["perplexity"] == pytest.approx(checks["reference"]["perplexity"], rel=0.1)
        assert 0.5 < found["same_top"] <= 1.0
        assert found["prompts"] == len(export_check.SMOKE_PROMPTS)
    assert checks["template"]["equal"] == 6
    assert 4 <= checks["texts"]["count"] <= check_texts.MOST_TEXTS
    assert checks["texts"]["tokens"] <= check_texts.MOST_TOKENS
    json.dumps(checks)


def test_replies_without_an_end_are_a_red_line_with_advice(done: dict) -> None:
    checks = done["checks"]
    assert checks["files"]["q8_0"]["ended"] < 4
    warned = next(warning for warning in checks["warnings"] if warning.startswith("q8_0: "))
    assert "ran into the cap of 256 tokens" in warned
    lines = check_lines(checks)
    assert click.style(f"check: {warned}", fg="red", bold=True) in lines
    said = [click.unstyle(line) for line in lines]
    assert said[0].startswith("check: Chat template: 6 of 6 conversations print as under transformers")
    assert any(line.startswith("check: q8_0: KL 0.0") and "short prompts ended by themselves" in line for line in said)


def test_without_measuring_the_template_is_still_checked(folder: Path) -> None:
    done = export_folder(folder, ["q8_0"], folder.parent / "out", threads=1, check=False)
    assert set(done["checks"]) == {"template", "warnings", "seconds"}
    assert done["checks"]["template"]["equal"] == 6


def test_a_wrong_template_fails_the_export_with_code_2(folder: Path, done: dict, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(folder, tmp_path / "m")
    (other / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    )
    paths = {file["type"]: Path(file["path"]) for file in done["files"]}
    with pytest.raises(UserError, match="prints otherwise than the model's own for one turn") as error:
        check_exported(other, paths, measure=False)
    assert error.value.exit_code == 2


def test_where_nothing_exact_fits_it_says_that_nothing_was_measured(folder: Path, done: dict, monkeypatch) -> None:
    import ssd_lite.engines.checks.gguf_measures as module

    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    monkeypatch.setattr(module, "card_bytes", lambda: None)
    path = next(Path(file["path"]) for file in done["files"] if file["type"] == "q8_0")
    checks = check_exported(folder, {"q8_0": path}, replying=Replying(threads=1))
    assert checks["reference"]["measured"] is False
    assert "kl" not in checks["files"]["q8_0"]
    assert any("KL and perplexity were not measured: the model takes" in line for line in check_lines(checks))
    assert checks["files"]["q8_0"]["prompts"] == 4


def test_a_wish_to_stop_is_heard_while_measuring(folder: Path, done: dict, monkeypatch) -> None:
    from ssd_lite.errors import Stopped

    listen()
    monkeypatch.setattr(export_check, "stop_requested", lambda: True)
    with pytest.raises(Stopped):
        check_exported(folder, {"q8_0": Path(done["files"][0]["path"])}, replying=Replying(threads=1))


@pytest.mark.parametrize(
    ("name", "number"),
    [("f32", 32), ("bf16", 16), ("q8_0", 8), ("q6_k", 6), ("q5_k_m", 5), ("q4_k_m", 4), ("iq3_xxs", 3), ("tq1_0", 1)],
)
def test_a_type_names_its_bits(name: str, number: int) -> None:
    assert bits(name) == number
    assert number in KL_LIMITS


def test_limits_rise_as_bits_fall() -> None:
    limits = [KL_LIMITS[number] for number in sorted(KL_LIMITS, reverse=True)]
    assert limits == sorted(limits)
    far = Divergence(100, 3.0, 0.3, 0.01, 1.0, 0.8)
    assert export_check._distance_warnings("q4_k_m", far) == []
    assert "Take a type of more bits" in export_check._distance_warnings("q8_0", far)[0]
    assert "The conversion itself changed the model" in export_check._distance_warnings("f16", far)[0]
    assert export_check._distance_warnings("q8_0", replace(far, kl=0.001)) == []


def test_a_reply_cut_off_while_thinking_is_not_held_against_it() -> None:
    from ssd_lite.engines.checks.gguf_measures import Reply

    assert export_check._thinks(Reply("?", "<think>Hm, hm", False), opened=False)
    assert export_check._thinks(Reply("?", "Hm, hm", False), opened=True)
    assert not export_check._thinks(Reply("?", "<think>Hm</think>An answer", False), opened=False)
    assert not export_check._thinks(Reply("?", "An answer", False), opened=False)


def sample(problem: str, index: int, length: int = 9) -> dict:
    law = SamplingSettings(1.0, 20, 0.8, 0.0, 64)
    ids = tuple(range(10, 10 + length))
    return to_json(Sample(problem, index, (1, 2, 3), ids, "text", "stop", 0.1, 0, law, "llama_cpp", "ab"))


def write(file: Path, records: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with Journal(file, lambda record: (record["problem_id"], record["index"])) as journal:
        journal.append(records)


def test_a_run_is_measured_on_what_it_was_not_trained_on(tmp_path: Path, folder: Path) -> None:
    run = RunFolder.create(tmp_path / "r", Recipe.model_validate({"name": "r", "model": {"name": str(folder)}}))
    assert run_texts(run, folder) is None
    write(run.samples, [sample("a", 0, 5), sample("b", 0, 6), sample("c", 0, 7)])
    run.train_rows.write_text(json.dumps({"problem_id": "b", "index": 0}) + "\n")
    found = run_texts(run, folder)
    assert sorted(len(text.completion_ids) for text in found.texts) == [5, 7]
    assert found.words == "samples that were not trained on"
    write(
        run.path / "evaluations" / "tuned" / "samples.jsonl", [sample("p", 1, 4), sample("p", 0, 8), sample("q", 0, 9)]
    )
    found = run_texts(run, folder)
    assert sorted(len(text.completion_ids) for text in found.texts) == [8, 9]
    assert found.words == "completions of the tuned model to problems of the evaluation"
    assert found.tokens == (3 + 8 - 1) + (3 + 9 - 1)


def test_texts_are_bounded_and_spread(tmp_path: Path, folder: Path, monkeypatch) -> None:
    run = RunFolder.create(tmp_path / "r", Recipe.model_validate({"name": "r", "model": {"name": str(folder)}}))
    records = [sample(f"p{number:03}", 0, 100 + number) for number in range(200)]
    write(run.path / "evaluations" / "tuned" / "samples.jsonl", records)
    monkeypatch.setattr(check_texts, "MOST_TOKENS", 1500)
    found = run_texts(run, folder)
    lengths = [len(text.completion_ids) for text in found.texts]
    assert found.tokens <= 1500 < found.tokens + 260
    assert min(lengths) < 140
    assert max(lengths) > 210
    assert sum(len(text.positions) for text in found.texts) <= check_texts.MOST_POSITIONS


def test_long_completions_count_up_to_a_bound(tmp_path: Path, folder: Path) -> None:
    run = RunFolder.create(tmp_path / "r", Recipe.model_validate({"name": "r", "model": {"name": str(folder)}}))
    write(run.path / "evaluations" / "tuned" / "samples.jsonl", [sample("p", 0, 900)])
    assert [len(text.completion_ids) for text in run_texts(run, folder).texts] == [check_texts.LONGEST_COMPLETION]


def test_figures_that_are_not_finite_are_kept_as_none_and_said(folder: Path, done: dict, monkeypatch) -> None:
    """A model of NaN gives a warning and a result that JSON can hold, not a traceback after all files are written."""
    import ssd_lite.engines.checks.gguf_measures as module

    nan = float("nan")
    paths = {"q8_0": Path(done["files"][0]["path"])}

    def measured(perplexity: float, distance: Divergence) -> dict:
        with monkeypatch.context() as patch:
            patch.setattr(module, "measure", lambda *_: (perplexity, {"q8_0": distance}))
            checks = check_exported(folder, paths, replying=Replying(threads=1))
        json.dumps(checks, allow_nan=False)
        assert any("not finite" in line for line in check_lines(checks))
        return checks

    broken = Divergence(positions=9, kl=nan, kl_error=None, kl_high=nan, same_top=0.0, perplexity=nan)
    checks = measured(2.5, broken)
    assert checks["files"]["q8_0"]["kl"] is checks["files"]["q8_0"]["perplexity"] is None
    assert any(warning.startswith("q8_0: it gives numbers that are not finite") for warning in checks["warnings"])
    checks = measured(nan, replace(broken, perplexity=3.0))
    assert checks["reference"]["perplexity"] is None
    assert any(warning.startswith("The model itself") for warning in checks["warnings"])
    assert not any(warning.startswith("q8_0: it gives") for warning in checks["warnings"]), "not the file's fault"


@pytest.mark.parametrize("context", [256, 40])
def test_a_short_context_is_checked_as_far_as_it_goes(context: int, tmp_path: Path) -> None:
    short = save_tiny(tmp_path / "m", max_position_embeddings=context)
    checks = export_folder(short, ["q8_0"], tmp_path / "out", threads=1)["checks"]
    if context == 256:
        assert checks["reference"]["measured"] is True
        assert checks["files"]["q8_0"]["kl"] >= 0
    else:
        assert checks["reference"] == {"measured": False, "words": export_check.NO_TEXT_FITS}
        assert any("no text of the check fits" in line for line in check_lines(checks))
    assert any(f"do not fit the context of {context} tokens" in warning for warning in checks["warnings"])
    assert "prompts" not in checks["files"]["q8_0"]


def test_starter_texts_are_whole_turns(packaged_model) -> None:
    tokenizer = ChatTokenizer.load(packaged_model.folder)
    found = starter_texts(tokenizer, packaged_model.folder)
    assert found.tokens <= check_texts.MOST_TOKENS
    for text in found.texts:
        assert text.completion_ids[-1] == tokenizer.end_id
        assert tokenizer.decode(text.prompt_ids).endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(text.completion_ids).startswith("```python\n")
        assert text.positions[0] == 0
