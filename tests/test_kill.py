"""A run killed with SIGKILL while it samples, trains and evaluates goes on; no finished work is lost or repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssd_lite.journal import Journal, read_records
from ssd_lite.problems.named import load_problems
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import read_samples, take

pytestmark = pytest.mark.slow
pytest.importorskip("llama_cpp")
pytest.importorskip("peft")

STEPS, TRAIN, EVALUATE, N = 5, 6, 4, 2
# Small batches, so that completions end one after another and a kill falls between them.
RECIPE = f"""
threads: 1
model: {{name: smollm2-135m-instruct}}
problems: {{train_limit: {TRAIN}, evaluate_limit: {EVALUATE}}}
sample: {{temperature: 1.1, max_new_tokens: 24, batch_size: 1}}
curate: {{cut_off: keep, drop_stubs: false}}
train:
  max_steps: {STEPS}
  save_steps: 1
  gradient_accumulation_steps: 1
  gradient_checkpointing: false
  lora_r: 4
  lora_target_modules: [q_proj, v_proj]
evaluate: {{n: {N}, k: [1], max_new_tokens: 24, batch_size: 1}}
export: {{types: [q8_0]}}
report: {{pairs: 1}}
"""


def command(recipe: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "ssd_lite", "run", str(recipe), "--out", str(folder)]


def whole_lines(path: Path) -> bytes:
    """What a resumed run may count on: the lines that are whole."""
    data = path.read_bytes() if path.is_file() else b""
    return data[: data.rfind(b"\n") + 1]


def kill_at(recipe: Path, folder: Path, journal: Path, lines: int, log: Path) -> bytes:
    """Run until `journal` has so many lines, then kill every process of the run; the whole lines that are left."""
    with open(log, "ab") as out:
        process = subprocess.Popen(command(recipe, folder), stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + 240
    try:
        while whole_lines(journal).count(b"\n") < lines:
            assert process.poll() is None, f"the run ended before the kill:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{journal} did not grow:\n{log.read_text()[-3000:]}"
            time.sleep(0.005)
    finally:
        # The session is ours: started above, with the run as its leader.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return whole_lines(journal)


def finish(recipe: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(recipe, folder), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


def stages_done(folder: Path) -> set[str]:
    return set(json.loads((folder / "manifest.json").read_text())["stages"])


@pytest.mark.usefixtures("packaged_model")
def test_a_run_killed_in_three_stages_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    recipe, folder, log = tmp_path / "kill.yaml", tmp_path / "run", tmp_path / "log.txt"
    recipe.write_text(RECIPE)
    run_files = {
        "sample": folder / "samples.jsonl",
        "train": folder / "metrics.jsonl",
        "evaluate": folder / "evaluations" / "base" / "samples.jsonl",
    }
    before: dict[str, bytes] = {}
    for stage, journal in run_files.items():
        before[stage] = kill_at(recipe, folder, journal, 2, log)
        assert stage not in stages_done(folder), f"the kill came after {stage}"
        for earlier, kept in before.items():
            assert whole_lines(run_files[earlier]).startswith(kept), f"{earlier} was changed by {stage}"

    finish(recipe, folder)
    run = RunFolder.open(folder)
    for stage, journal in run_files.items():
        after = journal.read_bytes()
        assert after.startswith(before[stage])
        assert len(after) > len(before[stage]), f"{stage} had nothing left to do"

    train = take(load_problems("starter", role="train").problems, TRAIN, run.recipe.sample.seed)
    assert sorted(s.key for s in read_samples(run.samples)) == sorted((p.id, 0) for p in train)
    assert [record["step"] for record in read_records(run.metrics)] == list(range(1, STEPS + 1))
    evaluation = take(load_problems("starter", role="evaluate").problems, EVALUATE, run.recipe.evaluate.seed)
    wanted = sorted((p.id, index) for p in evaluation for index in range(N))
    for arm in (run.arm("base"), run.arm("tuned")):
        assert sorted(s.key for s in read_samples(arm.samples)) == wanted
        assert sorted((g["problem_id"], g["index"]) for g in read_records(arm.grades)) == wanted
    assert run.report.is_file()
    assert "was replayed with loss" not in run.log_file.read_text()

    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    started = time.monotonic()
    assert "Everything is done" in finish(recipe, folder).stdout
    assert time.monotonic() - started < 20
    assert {p: p.stat().st_mtime_ns for p in files} == files


@pytest.mark.usefixtures("packaged_model")
def test_a_torn_last_sample_is_made_again_and_the_same(tmp_path: Path) -> None:
    """What a power cut may leave of the last record, by the stage command itself."""
    recipe, folder = tmp_path / "torn.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    from ssd_lite.recipe_file import load_recipe

    run = RunFolder.create(folder, load_recipe(str(recipe)))
    stage = [sys.executable, "-m", "ssd_lite", "sample", str(folder)]
    assert subprocess.run(stage, capture_output=True, timeout=200, check=False).returncode == 0
    whole = run.samples.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    run.samples.write_bytes(whole[: len(whole) - last + 17])
    manifest = run.manifest()
    del manifest["stages"]["sample"]
    run.manifest_file.write_text(json.dumps(manifest))
    assert subprocess.run(stage, capture_output=True, timeout=200, check=False).returncode == 0
    with Journal(run.samples, lambda record: (record["problem_id"], record["index"])) as journal:
        assert journal.cut_bytes == 0
    assert run.samples.read_bytes() == whole
    assert RunFolder.open(folder).require("sample")["cut_bytes"] == 17
