"""The base of a run: a model that has no GGUF is known before anything is sampled, and may do without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_models import save_tiny

from ssd_lite.cli import main
from ssd_lite.errors import UserError
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model, check_gguf
from ssd_lite.stages.export import export, export_more
from ssd_lite.stages.sample import sample
from ssd_lite.stages.status import has_files


def run_of(folder: Path, model: Path, *settings: str) -> RunFolder:
    return RunFolder.create(folder, load_recipe("quickstart", [f"model.name={model}", *settings]))


@pytest.fixture
def olmo(tmp_path: Path) -> Path:
    """A model that transformers trains and our GGUF writer does not know."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save_tiny(tmp_path / "model")
    size = json.loads((folder / "config.json").read_text())
    for file in folder.glob("*.safetensors"):
        file.unlink()
    config = AutoConfig.for_model(
        "olmo2",
        vocab_size=size["vocab_size"],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=size["eos_token_id"],
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_model_without_gguf_is_refused_before_anything_is_sampled(olmo: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", olmo)
    for _ in range(2):
        with pytest.raises(UserError, match="would end without its GGUF files: the architecture Olmo2For") as caught:
            sample(run)
        assert caught.value.where == "export.types"
        assert caught.value.next_step.startswith("Set export.types: []")
    assert not run.samples.exists()
    mended = run_of(tmp_path / "r", olmo, "export.types=[]")  # the same run goes on
    check_gguf(mended.recipe, base_model(mended))
    measured = run_of(tmp_path / "s", olmo, "export.types=[]", "evaluate.gguf=[q8_0]")
    with pytest.raises(UserError, match="would end without"):
        check_gguf(measured.recipe, base_model(measured))


def test_a_model_with_gguf_is_taken(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", save_tiny(tmp_path / "model"))
    check_gguf(run.recipe, base_model(run))


def test_no_types_are_no_files_and_the_stage_is_done(olmo: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", olmo, "export.types=[]")
    assert export(run)["files"] == []
    assert run.done("export") == {"files": [], "checks": {}}
    assert has_files(run, "export")
    assert not run.gguf.exists()
    with pytest.raises(UserError, match="no GGUF type was named"):
        export_more(run, None)


def test_the_command_says_that_no_file_was_asked_for(olmo: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", olmo, "export.types=[]")
    done = CliRunner().invoke(main, ["export", str(run.path)])
    assert (done.exit_code, done.stdout) == (0, "export: no file, as export.types asks for none\n")
    pushed = CliRunner().invoke(main, ["push", str(run.path), "--what", "gguf", "--repo", "me/x", "--dry-run"])
    assert pushed.exit_code == 2
