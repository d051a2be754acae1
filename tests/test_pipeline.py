"""A whole run: stages in processes, exit codes, signals, the lock, and a second run that finds everything done."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from test_report import make_run
from tiny_models import packaged_source, save_tiny, shared_cache

from ssd_lite import heartbeat
from ssd_lite.atomic import new_folder
from ssd_lite.cli import main
from ssd_lite.errors import MissingLibraryError, Stopped, UserError
from ssd_lite.recipe_file import dump_recipe, load_recipe
from ssd_lite.recipe_stages import STAGE_SECTIONS, Stage
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import environment_with_lock, run_lock
from ssd_lite.stages import pipeline
from ssd_lite.stages.child import Ended, run_command, stop_signals
from ssd_lite.stages.pipeline import StageFailed, check_machine, run_all
from ssd_lite.stages.report import report
from ssd_lite.stages.status import has_files, status

ORDER = tuple(STAGE_SECTIONS)
HEAVY = {"torch", "transformers", "peft", "llama_cpp", "gguf", "numpy"}


def start(*words: str | Path) -> subprocess.Popen[str]:
    """`ssd-lite WORDS` as a process of its own, with the tests' cache."""
    environment = {**os.environ, "SSD_LITE_CACHE": str(shared_cache())}
    command = [sys.executable, "-m", "ssd_lite", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], limit_s: float = 120) -> tuple[int, str, str]:
    """Exit code, stdout and stderr at the end."""
    out, err = process.communicate(timeout=limit_s)
    return process.returncode, out, err


def until(condition: Callable[[], bool], limit_s: float = 90) -> None:
    """Wait for a condition; fails after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def finished_run(folder: Path) -> RunFolder:
    """A run whose stages are all done, with their files; made by hand but for its report."""
    run = make_run(folder)
    run.samples.write_text("")
    run.train_rows.write_text("")
    (run.merged / "ssd_lite_merge.json").rename(folder / "merge.json")
    run.merged.rmdir()
    for path in (run.adapter, run.merged):
        with new_folder(path) as part:
            (part / "weights").write_text("w")
    (folder / "merge.json").rename(run.merged / "ssd_lite_merge.json")
    run.gguf.mkdir()
    (run.gguf / "r1-q8_0.gguf").write_text("g")
    run.finish("export", {"files": [{"type": "q8_0", "path": "gguf/r1-q8_0.gguf", "bytes": 1, "seconds": 0.1}]}, 1.0)
    report(run)
    return run


def recipe_of(run: RunFolder) -> Path:
    """The run's recipe as a file beside it, which gives the same run again."""
    path = run.path.parent / "again.yaml"
    path.write_text(dump_recipe(run.recipe))
    return path


def test_order_has_every_stage_once() -> None:
    assert sorted(ORDER) == sorted(get_args(Stage))
    assert ORDER.index("merge") < ORDER.index("evaluate") < ORDER.index("export") < ORDER.index("report")


# -- everything done -------------------------------------------------------------------------------------------------


def test_second_run_finds_everything_done(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    code = f"""
import subprocess, sys
subprocess.Popen = None
from ssd_lite.cli import main
try:
    main(["run", {str(recipe_of(run))!r}, "--out", {str(run.path)!r}])
finally:
    print("LOADED", *{{name.split(".")[0] for name in sys.modules}})
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 5
    out, _, loaded = done.stdout.partition("LOADED")
    assert out.startswith(f"Everything is done: {run.path}\n")
    assert "pass@1" in out
    assert f"Report: {run.report}" in out
    assert f"ssd-lite chat {run.path}" in out
    assert not set(loaded.split()) & HEAVY


def test_done_run_as_json(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    result = CliRunner().invoke(main, ["run", str(recipe_of(run)), "--out", str(run.path), "--json"])
    value = json.loads(result.stdout)
    assert (value["ran"], list(value["stages"])) == ({}, list(ORDER))
    assert value["report"] == str(run.report)
    assert "Everything is done" in result.stderr


@pytest.mark.parametrize("stage", ORDER)
def test_a_lost_result_makes_its_stage_undone(stage: Stage, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    assert has_files(run, stage)
    lost = {
        "sample": run.samples,
        "curate": run.train_rows,
        "train": run.adapter / "weights",
        "merge": run.merged / "weights",
        "evaluate": run.path / "evaluations" / "comparison.json",
        "export": run.gguf / "r1-q8_0.gguf",
        "report": run.report,
    }[stage]
    lost.unlink()
    assert not pipeline.is_done(run, stage)
    assert status(run)["next"] == stage


def test_a_lost_report_is_written_by_a_real_process(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    run.note("stages", {k: v for k, v in run.manifest()["stages"].items() if k != "report"})
    run.report.unlink()
    said: list[str] = []
    summary = run_all(run, say=said.append, stdout=2)
    assert list(summary["ran"]) == ["report"]
    assert run.report.is_file()
    assert said[0] == "[7/7] report"
    entry = run.manifest()["processes"]["report"]
    assert entry["count"] == 1
    assert 0 < entry["seconds"] < 60
    # The kernel counts a child's memory from before exec, when it still was the parent's: here that of the whole suite.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 10 << 20 < entry["peak_rss_bytes"] <= max(own, 1 << 30)


# -- how a stage ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "error", "words"),
    [
        (Ended(75, 1.0, 1, False), Stopped, "stopped in the stage 'train'"),
        (Ended(-signal.SIGTERM, 1.0, 1, True), Stopped, "stopped in the stage"),
        (Ended(2, 1.0, 1, False), UserError, "cannot go on"),
        (Ended(1, 1.0, 1, False), StageFailed, "ended with exit code 1"),
        (Ended(1, 1.0, 1, True), StageFailed, "ended with exit code 1"),
        (Ended(-signal.SIGKILL, 1.0, 1, False), StageFailed, "killed by SIGKILL (out of memory?)"),
        (Ended(-signal.SIGTERM, 1.0, 1, False), StageFailed, "killed by SIGTERM"),
        (Ended(0, 1.0, 1, False), StageFailed, "ended without its result"),
    ],
)
def test_exit_codes(outcome: Ended, error: type[Exception], words: str, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    with pytest.raises(error) as caught:
        pipeline._check(run, "train", outcome)
    assert words in str(caught.value)
    assert {Stopped: 75, UserError: 2, StageFailed: 1}[error] == getattr(caught.value, "exit_code", None)
    assert f"the stage train ended with exit code {outcome.code}" in run.log_file.read_text()


@pytest.mark.slow
def test_a_user_error_of_a_stage_is_the_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"model": {"name": "no-such-model"}}))
    code, out, err = ended(start("run", recipe, "--out", tmp_path / "run", "--json"))
    assert code == 2
    assert "no model named 'no-such-model'" in err
    assert "the stage 'sample' cannot go on" in err
    assert json.loads(out)["exit_code"] == 2
    assert status(RunFolder.open(tmp_path / "run"))["in_use_by"] is None


def test_a_bug_in_a_stage_is_shown_and_logged(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    run.note("stages", {k: v for k, v in run.manifest()["stages"].items() if k != "report"})
    (run.path / "evaluations" / "comparison.json").write_text("{}")
    code, _, err = ended(start("run", recipe_of(run), "--out", run.path))
    assert code == 1
    assert "Traceback" in err
    assert f"the stage 'report' ended with exit code 1. Its traceback is above and in {run.log_file}" in err
    assert "Traceback" in run.log_file.read_text()


def test_a_stage_whose_run_is_gone_does_not_start(tmp_path: Path) -> None:
    """The lock was handed down, but its holder is another process than the parent."""
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    with run_lock(run.path) as lock:
        (run.path / ".lock").write_text(json.dumps({"pid": 1, "host": "h", "since": "s"}))
        command = [sys.executable, "-m", "ssd_lite", "sample", str(run.path)]
        done = subprocess.run(
            command, env=environment_with_lock(lock), pass_fds=(lock,), capture_output=True, text=True, check=False
        )
    assert done.returncode == 75
    assert "is gone" in done.stderr


def test_a_missing_library_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("quickstart")
    check_machine(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(MissingLibraryError, match=r'pip install "ssd-lite\[gguf\]"'):
        pipeline.prepare(tmp_path / "r", recipe)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("key", ["sample.max_new_tokens", "evaluate.max_new_tokens"])
def test_a_cap_beyond_the_context_is_refused_before_anything_is_paid_for(key: str, tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [f"{key}=8192"])
    with pytest.raises(UserError, match=f"{key}: 8192 leaves no room for a prompt in the model's context of 8192"):
        pipeline.prepare(tmp_path / "r", recipe)
    assert not (tmp_path / "r").exists()
    check_machine(load_recipe("quickstart", [f"{key}=8000"]))


def test_grpo_does_not_sample_beforehand() -> None:
    grpo = ["train.grpo={num_generations: 4}", "sample.max_new_tokens=8192", "train.optim=adamw_torch"]
    check_machine(load_recipe("quickstart", grpo))


def test_the_context_of_a_folder_is_known_too(tmp_path: Path) -> None:
    from tiny_models import save_tiny

    base = save_tiny(tmp_path / "base", max_position_embeddings=128)
    recipe = load_recipe("quickstart", [f"model.name={base}", "evaluate.max_new_tokens=100"])
    with pytest.raises(UserError, match=r"sample.max_new_tokens: 256 leaves no room .* 128 tokens"):
        check_machine(recipe)


def test_types_of_few_bits_need_their_matrix() -> None:
    with pytest.raises(UserError, match=r"iq2_xs needs an importance matrix: set export.imatrix to true"):
        load_recipe("quickstart", ["export.types=[iq2_xs]"])
    assert load_recipe("quickstart", ["export.types=[iq2_xs]", "export.imatrix=true"]).export.imatrix
    with pytest.raises(UserError, match=r"evaluate.gguf iq1_s needs an importance matrix: set export.imatrix to true"):
        load_recipe("quickstart", ["evaluate.gguf=[iq1_s]"])
    load_recipe("quickstart", ["evaluate.gguf=[iq1_s]", "export.imatrix=true"])
    with pytest.raises(UserError, match=r"model.gguf_type q2_k_s needs an importance matrix, which the base"):
        load_recipe("quickstart", ["model.gguf_type=q2_k_s", "export.imatrix=true"])


# -- real processes: signals and the lock ----------------------------------------------------------------------------


@pytest.fixture
def sampling(tmp_path: Path) -> Iterator[tuple[list[str | Path], RunFolder]]:
    """The words of a run that samples for minutes, and its folder; no process is left behind."""
    packaged_source()
    settings = ["problems.train_limit=150", "sample.max_new_tokens=16", "sample.batch_size=2", "threads=1"]
    recipe = load_recipe("quickstart", settings)
    run = RunFolder.create(tmp_path / "run", recipe)
    yield ["run", recipe_of(run), "--out", run.path], run
    until(lambda: status(run)["in_use_by"] is None)


def child_of(process: subprocess.Popen[str]) -> int:
    """The pid of the stage that a run started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: bool(children.read_text().split()))
    return int(children.read_text().split()[0])


@pytest.mark.slow
def test_stop_and_go_on_and_one_at_a_time(sampling: tuple[list[str | Path], RunFolder]) -> None:
    words, run = sampling
    first = start(*words)
    until(lambda: status(run)["counts"]["samples"] >= 2)
    assert status(run)["in_use_by"]["pid"] == first.pid
    code, _, err = ended(start(*words))
    assert code == 2
    assert "in use by" in err
    code, _, err = ended(start("curate", run.path))
    assert (code, "in use by" in err) == (2, True)
    first.send_signal(signal.SIGTERM)
    code, _, err = ended(first)
    assert code == 75
    assert "run the same command again" in err
    saved = run.samples.read_bytes()

    second = start(*words)
    until(lambda: run.samples.stat().st_size > len(saved))
    os.kill(child_of(second), signal.SIGKILL)
    code, _, err = ended(second)
    assert code == 1
    assert "killed by SIGKILL" in err
    assert run.samples.read_bytes().startswith(saved)
    assert run.manifest()["processes"]["sample"]["count"] == 2


@pytest.mark.slow
def test_ctrl_c_reaches_both_and_stops_once(sampling: tuple[list[str | Path], RunFolder]) -> None:
    """A terminal sends SIGINT to run and stage alike; the stage still saves its work and ends with 75."""
    words, run = sampling
    process = start(*words)
    until(lambda: status(run)["counts"]["samples"] >= 1)
    for pid in (process.pid, child_of(process)):
        os.kill(pid, signal.SIGINT)
    code, _, err = ended(process)
    assert code == 75
    assert "Traceback" not in err
    assert "sample stopped after" in err


@pytest.mark.slow
def test_a_stage_does_not_outlive_its_run(sampling: tuple[list[str | Path], RunFolder]) -> None:
    words, run = sampling
    process = start(*words)
    until(lambda: status(run)["counts"]["samples"] >= 1)
    child = child_of(process)
    process.kill()
    ended(process)
    until(lambda: not Path(f"/proc/{child}").exists(), limit_s=30)
    assert status(run)["in_use_by"] is None


@pytest.mark.slow
def test_a_whole_run_on_a_tiny_model(tmp_path: Path) -> None:
    """Every stage as a process, real parts only; --json gives one object; then each stage by hand is skipped."""
    model = save_tiny(tmp_path / "model", max_position_embeddings=1024)
    settings = [
        *(f"model.name={model}", "problems.train_limit=4", "problems.evaluate_limit=2", "sample.max_new_tokens=12"),
        *("evaluate.max_new_tokens=12", "evaluate.n=1", "evaluate.k=[1]", "train.max_steps=2", "curate.cut_off=keep"),
        *("curate.drop_stubs=false", "train.lora_r=2", "export.types=[q8_0]", "threads=1"),
    ]
    words = ["run", "quickstart", "--out", tmp_path / "run", "--json", *(f"--set={setting}" for setting in settings)]
    code, out, err = ended(start(*words), 300)
    assert code == 0, err
    value = json.loads(out)
    assert list(value["ran"]) == list(ORDER)
    assert value["stages"]["sample"]["samples"] == 4
    assert value["stages"]["train"]["steps"] == 2
    assert "pass@1" in value["table"]
    assert all(entry["peak_rss_bytes"] < 4 << 30 for entry in value["processes"].values())
    run = RunFolder.open(tmp_path / "run")
    manifest = run.manifest_file.read_bytes()
    for stage in ORDER:
        code, out, err = ended(start(stage, run.path, "--json"))
        assert (code, json.loads(out)["stage"]) == (0, stage), err
    code, out, _ = ended(start(*words), 5)
    assert (code, json.loads(out)["ran"]) == (0, {})
    assert run.manifest_file.read_bytes() == manifest


def test_a_run_corrects_the_plan_while_a_stage_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage's process is a script that writes the news of a training and waits to be stopped."""
    run = finished_run(tmp_path / "r")
    (run.adapter / "weights").unlink()
    run.metrics.unlink()  # written by hand, without what a plan reads
    news = {
        "state": "working",
        "updated_unix": time.time() + 60,
        "stage": "train",
        "label": "training",
        "unit": "steps",
        "done": 5,
        "total": 20,
        "done_here": 5,
        "seconds_here": 50.0,
        "seconds_left": 150.0,
        "price": None,
        "card": None,
    }
    (tmp_path / "news.json").write_text(json.dumps(news))
    script = tmp_path / "stage"
    script.write_text(f"#!/bin/sh\ncp {tmp_path}/news.json {run.path}/{heartbeat.FILE}\nsleep 0.5\nexit 75\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr("ssd_lite.stages.child.LOOK_S", 0.1)
    said: list[str] = []
    with pytest.raises(Stopped, match="stopped in the stage 'train'"):
        run_all(run, say=said.append)
    assert said[0] == "[3/7] train"
    corrected = [line for line in said if "plan corrected" in line]
    assert len(corrected) == 1
    assert corrected[0].startswith("plan corrected: train 3m20s in all at the measured pace")


def test_a_signal_between_stages_starts_no_other(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    run.note("stages", {k: v for k, v in run.manifest()["stages"].items() if k != "report"})

    def say(line: str) -> None:
        raise AssertionError(f"a stage was started: {line}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "is_done", lambda run, stage: bool(os.kill(os.getpid(), signal.SIGTERM)))
        with pytest.raises(Stopped, match="before the stage 'sample'"):
            run_all(run, say=say)


def test_run_command_measures_the_process(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r")
    before = signal.getsignal(signal.SIGINT)  # a shell's background job starts with SIGINT ignored
    with run_lock(run.path) as lock, stop_signals() as asked:
        assert signal.getsignal(signal.SIGINT) is not before
        done = run_command(["report", str(run.path)], lock, 2, asked)
    assert done.code == 0
    assert not done.stop_asked
    assert signal.getsignal(signal.SIGINT) is before
