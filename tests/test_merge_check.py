"""The check after merging sees a wrong merge, the gap of a quantised base, and nothing where there is nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from trained_run import make_trained_run

from ssd_lite.cli import main
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe_file import validate
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.merge import merge
from ssd_lite.stages.merge_check import BOUNDS, CANDIDATES, MOST_POSITIONS, check_lines, check_merge
from ssd_lite.stages.pages.merge_section import merged_against_trained
from ssd_lite.stages.pages.model_card import write_card

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    return partial(make_trained_run, tmp_path)


def perturb(merged: Path, name: str, by: float) -> None:
    """Another merged model: noise on one weight."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(merged / "model.safetensors")
    tensors[name] = tensors[name] + np.random.default_rng(0).normal(0, by, tensors[name].shape).astype(np.float32)
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_right_merge_passes_and_a_wrong_one_is_flagged(make_run: MakeRun, kind: str) -> None:
    run = make_run("lora", kind)
    check = merge(run)["check"]
    assert (check["prompts"], check["positions"]) == (8, 8 * 30)
    assert check["kl"] < 1e-6
    assert check["same_first"] > 0.99
    assert check["bad"] is False
    perturb(run.merged, "model.layers.1.mlp.down_proj.weight", 0.2)
    wrong = check_merge(run, Path(run.recipe.model.name))
    assert wrong["bad"] is True
    assert wrong["kl"] > BOUNDS["lora"][0]
    assert wrong["kl_worst"] > wrong["kl"]
    line, warning = check_lines(wrong)
    assert "240 positions of 8 prompts" in line
    assert warning.startswith("Warning: ")
    assert "merge.dtype: float32" in warning


@pytest.mark.slow
def test_a_forgotten_update_is_flagged(make_run: MakeRun) -> None:
    """The merge that adds the adapter to the wrong scale, or not at all, is what the check is for."""
    run = make_run("lora")
    merge(run)
    shutil.copyfile(Path(run.recipe.model.name) / "model.safetensors", run.merged / "model.safetensors")
    assert check_merge(run, Path(run.recipe.model.name))["bad"] is True


@pytest.mark.slow
def test_the_original_base_shows_the_gap_and_the_dequantised_one_closes_it(make_run: MakeRun) -> None:
    run = make_run("qlora")
    gap = merge(run)["check"]
    assert gap["kl"] > 1e-3, "NF4 of a random model is far from it"
    recipe = run.recipe.model_copy(update={"merge": run.recipe.merge.model_copy(update={"base": "dequantised"})})
    with pytest.raises(UserError, match="with other settings"):
        merge(RunFolder(run.path, recipe))
    shutil.rmtree(run.merged)
    again = RunFolder(run.path, recipe)
    summary = merge(again)
    assert summary["onto"] == "dequantised"
    assert summary["check"]["kl"] < 1e-4
    assert summary["check"]["same_first"] > 0.99
    assert summary["check"]["bad"] is False
    assert merge(again) == summary
    perturb(run.merged, "model.layers.0.self_attn.o_proj.weight", 0.05)
    assert check_merge(again, Path(recipe.model.name))["kl"] > 100 * max(summary["check"]["kl"], 1e-6)


def test_dequantised_weights_are_those_of_the_loaded_model(make_run: MakeRun) -> None:
    """Modules without an adapter are NF4 in training too; embeddings and norms are not."""
    from safetensors.numpy import load_file

    from ssd_lite.engines.training.nf4_base import Nf4Base

    run = make_run("qlora", merge={"base": "dequantised"})
    merge(run)
    base = Path(run.recipe.model.name)
    before, merged, quantised = load_file(base / "model.safetensors"), None, Nf4Base(base)
    merged = load_file(run.merged / "model.safetensors")
    assert len(quantised.weights) == 2 * 7
    for name, tensor in merged.items():
        if name not in quantised.weights:
            assert np.array_equal(tensor, before[name]), name
    name = "model.layers.0.mlp.up_proj.weight"
    error = np.linalg.norm(quantised.array(name) - before[name]) / np.linalg.norm(before[name])
    assert 0.05 < error < 0.15


def test_quantised_weights_without_an_adapter_are_dequantised_too(make_run: MakeRun, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from ssd_lite.engines.training.nf4_base import Nf4Base

    run = make_run("qlora", merge={"base": "dequantised"})
    file = run.adapter / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "q_proj" in name}, file, metadata={"format": "pt"})
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    (run.adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    summary = merge(run)
    assert summary["changed_tensors"] == 2
    assert summary["check"]["kl"] < 1e-4
    merged, quantised = load_file(run.merged / "model.safetensors"), Nf4Base(Path(run.recipe.model.name))
    name = "model.layers.1.mlp.gate_proj.weight"
    assert np.array_equal(merged[name], quantised.array(name))


def test_rounding_to_sixteen_bits_is_seen_and_small(make_run: MakeRun) -> None:
    run = make_run("lora", stored="bfloat16", merge={"dtype": "base"})
    check = merge(run)["check"]
    assert 1e-7 < check["kl"] < BOUNDS["lora"][0]
    assert check["bad"] is False


def test_what_is_left_out_says_why(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("lora", merge={"check_prompts": 0})
    check = merge(run)["check"]
    assert check == {"skipped": "merge.check_prompts is 0"}
    assert check_lines(check) == ["merge check: left out, merge.check_prompts is 0"]
    base = Path(run.recipe.model.name)

    def changed(section: str, **keys: Any) -> RunFolder:
        part = getattr(run.recipe, section).model_copy(update=keys)
        merging = run.recipe.merge.model_copy(update={"check_prompts": 3})
        return RunFolder(run.path, run.recipe.model_copy(update={"merge": merging, section: part}))

    assert check_merge(changed("train"), base)["prompts"] == 3
    assert "all weights were trained" in check_merge(changed("train", method="full"), base)["skipped"]
    monkeypatch.setattr("ssd_lite.engines.checks.merge_check.available_bytes", lambda: 10**6)
    assert "this machine has 0.0 GiB free" in check_merge(changed("train"), base)["skipped"]
    monkeypatch.undo()
    run.train_rows.unlink()
    assert "kept no sample" in check_merge(changed("train"), base)["skipped"]


def test_it_reads_the_rows_with_short_prompts(make_run: MakeRun) -> None:
    from ssd_lite.stages.merge_check import _texts

    run = make_run("lora")
    merge(run)
    lengths = [len(text.prompt_ids) for text in _texts(run)]
    assert len(lengths) == 8
    assert lengths == sorted(lengths)
    assert max(lengths) < 5 + 40 * 8 // (8 * CANDIDATES) + CANDIDATES


def test_under_grpo_it_reads_the_ends_of_prompts(make_run: MakeRun) -> None:
    run = make_run("lora", train={"method": "lora", "grpo": {}}, merge={"check_prompts": 3})
    run.train_rows.unlink()
    check = merge(run)["check"]
    assert (check["prompts"], check["positions"]) == (3, 3 * MOST_POSITIONS)
    assert check["bad"] is False


def test_a_stop_keeps_the_merge_and_the_same_command_checks_again(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("lora")
    monkeypatch.setattr("ssd_lite.engines.checks.merge_check.stop_requested", lambda: True)
    with pytest.raises(Stopped):
        merge(run)
    assert run.done("merge") is None
    written = (run.merged / "model.safetensors").stat().st_mtime_ns
    monkeypatch.undo()
    assert merge(run)["check"]["bad"] is False
    assert (run.merged / "model.safetensors").stat().st_mtime_ns == written


def test_the_command_prints_it_and_the_manifest_keeps_it(make_run: MakeRun) -> None:
    run = make_run("lora")
    result = CliRunner().invoke(main, ["merge", str(run.path)], catch_exceptions=False)
    assert "merge check: KL " in result.output
    kept = json.loads(run.manifest_file.read_text())["stages"]["merge"]["summary"]["check"]
    assert kept["positions"] == 240
    assert "merge check: KL" in run.log_file.read_text()


def test_a_merge_of_numbers_that_are_not_finite_is_bad_and_kept(make_run: MakeRun) -> None:
    run = make_run("lora")
    merge(run)
    perturb(run.merged, "model.layers.1.mlp.down_proj.weight", float("inf"))
    check = check_merge(run, Path(run.recipe.model.name))
    json.dumps(check, allow_nan=False)
    assert (check["bad"], check["kl"]) == (True, None)
    line, warning = check_lines(check)
    assert "KL not finite" in line
    assert "lower train.learning_rate" in warning
    assert "not finite" in merged_against_trained({"check": check})


def test_report_and_card_say_what_was_seen(make_run: MakeRun) -> None:
    run = make_run("qlora")
    summary = merge(run)
    check = summary["check"]
    page = merged_against_trained(summary)
    assert f"{check['kl']:.2g}" in page
    assert "240 positions of 8 training samples" in page
    assert "added to the original base" in page
    assert merged_against_trained({}) == ""
    assert "merge.check_prompts is 0" in merged_against_trained({"check": {"skipped": "merge.check_prompts is 0"}})
    bad = {**summary, "onto": "dequantised", "check": {**check, "bad": True, "advice": "Do <this>."}}
    assert "Do &lt;this&gt;." in merged_against_trained(bad)
    assert "added to the NF4 base, dequantised" in merged_against_trained(bad)
    write_card(run, None)
    assert f"| merged against trained | KL {check['kl']:.2g} nats a token" in (run.merged / "README.md").read_text()


def test_the_dequantised_base_needs_qlora() -> None:
    value = {"name": "x", "model": {"name": "m"}, "train": {"method": "lora"}, "merge": {"base": "dequantised"}}
    with pytest.raises(UserError, match="dequantised needs"):
        validate(value, "x")
