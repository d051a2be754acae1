"""The stages curate and train on a run folder and a model folder on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import random_rows, save_tiny_model

from ssd_lite.engines import model_source
from ssd_lite.engines.sampling.targets import Targets
from ssd_lite.errors import UserError
from ssd_lite.journal import read_records
from ssd_lite.recipe import Model, Recipe, Sample, Train
from ssd_lite.run_folder import RunFolder
from ssd_lite.span_file import SpanFile
from ssd_lite.stages.train import read_rows, train


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is curated already, on a tiny model folder."""
    model = save_tiny_model(tmp_path / "model")
    source = model_source.ModelSource(str(model), "folder", model, None, None, "0123", "tiny")
    monkeypatch.setattr(model_source, "resolve_model", lambda *args: source)
    settings = Train(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, lora_r=4, max_length=64, learning_rate=1e-3
    )
    run = RunFolder.create(tmp_path / "run", Recipe(name="r", threads=1, model=Model(name=str(model)), train=settings))
    run.finish("sample", {}, 0.0)
    write_rows(run)
    run.finish("curate", {}, 0.0)
    return run


def write_rows(run: RunFolder) -> None:
    rows = [
        {"problem_id": str(n), "index": 0, "prompt_ids": row.prompt_ids, "completion_ids": row.completion_ids}
        for n, row in enumerate(random_rows(9))
    ]
    run.train_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_it_trains_and_remembers(run: RunFolder) -> None:
    summary = train(run)
    assert summary["steps"] == 3
    assert summary["tokens_trained"] == sum(len(row.completion_ids) for row in random_rows(9))
    assert summary["peak_rss_bytes"] > 2**20
    assert summary["versions"]["torch"] == torch.__version__
    assert (run.adapter / "adapter_model.safetensors").is_file()
    run.train_rows.unlink()  # done is done: nothing is read again
    assert train(run) == summary


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_the_terms_of_the_loss_have_the_teachers_temperature(run: RunFolder, temperature: float) -> None:
    """T·H(q) of a q that is 0.7 and 0.3 everywhere is known; (1-T)·H(p(·|S)) has the sign of 1-T."""
    recipe = run.recipe.model_copy(update={"sample": Sample(temperature=temperature)})
    run = RunFolder(run.path, recipe)
    run.finish("sample", {}, 0.0)
    run.finish("curate", {}, 0.0)
    write_kept_laws(run)
    train(run)
    steps = read_records(run.metrics)
    assert len(steps) == 3
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3))
    for step in steps:
        assert step["target_entropy"] == pytest.approx(temperature * entropy, rel=1e-5)
        assert step["reshaping"] * (1 - temperature) > 0


def write_kept_laws(run: RunFolder) -> None:
    """The rows again, each token drawn from itself and its neighbour."""
    lines = [json.loads(line) for line in run.train_rows.read_text().splitlines()]
    run.targets.parent.mkdir(exist_ok=True)
    with SpanFile(run.targets, []) as spans:
        for line in lines:
            drawn = np.array(line["completion_ids"], dtype=np.uint32)
            ids = np.stack([drawn, (drawn + 1) % 300], axis=1).flatten()
            laws = Targets(
                np.full(len(drawn), 2, np.uint16), ids, np.tile(np.array([0.7, 0.3], np.float32), len(drawn))
            )
            line["targets"] = asdict(spans.append(laws.to_bytes()))
    run.train_rows.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_killed_publish_is_made_again_from_the_last_checkpoint(run: RunFolder) -> None:
    """Killed after the last step and before adapter/ stood: no step is trained again."""
    first = train(run)
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    run.adapter.rename(run.path / "lost")
    assert train(run)["steps"] == first["steps"]
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == weights


def test_killed_between_the_adapter_and_the_manifest(run: RunFolder) -> None:
    first = train(run)
    manifest = run.manifest()
    del manifest["stages"]["train"]
    run.manifest_file.write_text(json.dumps(manifest))
    again = train(run)
    assert (again["steps"], again["final_loss"]) == (first["steps"], first["final_loss"])


def test_a_damaged_adapter_is_not_written_over(run: RunFolder) -> None:
    train(run)
    (run.adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="missing or cut"):
        train(run)


def test_training_before_curating_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Recipe(name="r", model=Model(name="m")))
    with pytest.raises(UserError, match="'curate' is not done"):
        train(run)


@pytest.mark.parametrize(
    "line",
    ['{"prompt_ids": [1]', '{"prompt_ids": [1]}', '{"prompt_ids": [1], "completion_ids": []}',
     '{"prompt_ids": [1.5], "completion_ids": [2]}', '[1]', '{"prompt_ids": "12", "completion_ids": [2]}'],
)  # fmt: skip
def test_a_bad_row_names_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt_ids": [1], "completion_ids": [2]}\n' + line + "\n")
    with pytest.raises(UserError, match="no training row") as error:
        read_rows(file, 10, tmp_path / "targets")
    assert error.value.where.endswith("train.jsonl:2")


def test_a_row_above_the_maximum_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt_ids": [1], "completion_ids": [2, 3]}\n')
    assert len(read_rows(file, 3, tmp_path / "targets")[0]) == 3
    with pytest.raises(UserError, match=r"3 tokens, above train\.max_length 2"):
        read_rows(file, 2, tmp_path / "targets")


def test_missing_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "train.jsonl", 2, tmp_path / "targets")
