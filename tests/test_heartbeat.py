"""The heartbeat of a run: what watchers read, how it ends, and the plan that is corrected by it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import click
import pytest

from ssd_lite import heartbeat
from ssd_lite.command_line.process import opened_run
from ssd_lite.errors import Stopped, UserError
from ssd_lite.plan.cards import card_called
from ssd_lite.progress import Progress
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pipeline import last_word
from ssd_lite.stages.plan_watch import PlanWatch, believable, line
from ssd_lite.stages.status import heartbeat_lines, status


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(heartbeat, "_current", None)
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.0)
    return RunFolder.create(tmp_path / "r", load_recipe("quickstart"))


def test_progress_beats(run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(heartbeat.PRICE, "1800")  # half a unit a second
    run.note("processes", {"sample": {"seconds": 100.0}, "curate": {"seconds": 20.0}})
    with opened_run(run.path, "train"), Progress(10, "steps", "training", start=2) as progress:
        progress.advance(tokens=50, note="loss 1.5")
        seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["stage"], seen["done"], seen["total"]) == ("working", "train", 3, 10)
    assert (seen["done_here"], seen["note"], seen["unit"]) == (1, "loss 1.5", "steps")
    assert seen["seconds_left"] is not None
    assert seen["run_seconds"] >= 120
    assert seen["cost"] == pytest.approx(60, abs=5)
    assert seen["card_used_bytes"] is None
    assert "cost 60." in capsys.readouterr().err
    ended = heartbeat.read(run.path)
    assert ended is not None
    assert (ended["state"], ended["done"]) == ("stage done", 3)


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (Stopped("x"), "stopped", None),
        (UserError("bad", where="here"), "failed", "here: bad"),
        (ValueError("odd"), "failed", "ValueError: odd"),
    ],
)
def test_how_a_stage_ended(run: RunFolder, error: Exception, state: str, words: str | None) -> None:
    with pytest.raises(type(error)), opened_run(run.path, "train"):
        raise error
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["error"]) == (state, words)


@pytest.mark.parametrize(
    ("error", "state"), [(None, "done"), (Stopped("x"), "stopped"), (click.ClickException("killed"), "failed")]
)
def test_the_run_has_the_last_word(run: RunFolder, error: Exception | None, state: str) -> None:
    heartbeat.begin(run.path, "train").beat(label="training", done=1, total=2, unit="steps")
    try:
        with last_word(run.path):
            if error is not None:
                raise error
    except click.ClickException:
        pass
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["stage"]) == (state, "train")


def test_a_stage_is_seen_before_its_first_news(run: RunFolder) -> None:
    (run.path / heartbeat.FILE).write_text(json.dumps({"state": "failed", "error": "of the process before"}))
    heartbeat.begin(run.path, "merge")
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["stage"], seen["error"]) == ("working", "merge", None)


def test_a_round_tells_its_run_too(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.note("processes", {"sample": {"seconds": 100.0}})
    inner = RunFolder.create(run.path / "rounds" / "2", run.recipe)
    inner.note("processes", {"sample": {"seconds": 11.0}, "train": {"seconds": 9.0}})
    monkeypatch.setenv(heartbeat.PARENT, str(run.path))
    heartbeat.begin(inner.path, "train").beat(label="training", done=1, total=2, unit="steps")
    for folder in (run.path, inner.path):
        seen = heartbeat.read(folder)
        assert seen is not None
        assert (seen["stage"], seen["done"]) == ("train", 1)
        assert seen["run_seconds"] == pytest.approx(120, abs=2)


def test_a_second_command_has_no_word_in_a_run_that_works(run: RunFolder) -> None:
    """It is refused for the lock, and must not call the working run failed."""
    heartbeat.begin(run.path, "train")
    holds = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holds.stdout is not None
    assert holds.stdout.readline() == "held\n"
    with pytest.raises(UserError), last_word(run.path):
        raise UserError("this run is in use")
    holds.communicate("")
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert seen["state"] == "working"
    with pytest.raises(RuntimeError), last_word(run.path):
        raise RuntimeError("a bug")
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["error"]) == ("failed", "RuntimeError: a bug")


_HOLD = """
import sys
from pathlib import Path
from ssd_lite.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_machine_that_was_lost_is_counted_by_its_last_word(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ended without a manifest entry; limits of a whole run stand on this figure."""
    monkeypatch.setenv(heartbeat.PRICE, "2")
    run.note("processes", {"sample": {"seconds": 600.0}})
    (run.path / heartbeat.FILE).write_text(json.dumps({"state": "working", "stage": "train", "run_seconds": 18000.0}))
    heartbeat.begin(run.path, "train")
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert seen["run_seconds"] == pytest.approx(18000, abs=2)
    assert seen["cost"] == pytest.approx(10, abs=0.01)


def test_what_a_killed_stage_took_is_in_the_last_word(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(heartbeat.PRICE, "2")
    heartbeat.begin(run.path, "merge")
    run.note("processes", {"merge": {"seconds": 7200.0}})  # a hang without news, killed and counted by the run
    heartbeat.finish(run.path, heartbeat.STOPPED)
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["run_seconds"], seen["cost"]) == ("stopped", 7200.0, 4.0)


def test_the_error_of_a_stage_is_not_talked_over(run: RunFolder) -> None:
    with pytest.raises(UserError), last_word(run.path), opened_run(run.path, "train"):
        raise UserError("the card has no memory left")
    with pytest.raises(UserError), last_word(run.path):
        raise UserError("the stage 'train' cannot go on; its error stands above")
    seen = heartbeat.read(run.path)
    assert seen is not None
    assert (seen["state"], seen["error"]) == ("failed", "the card has no memory left")


def test_no_heart_no_news(tmp_path: Path) -> None:
    assert heartbeat.read(tmp_path) is None
    heartbeat.finish(tmp_path, heartbeat.DONE)
    assert not list(tmp_path.iterdir())
    (tmp_path / heartbeat.FILE).write_text("{torn")
    assert heartbeat.read(tmp_path) is None
    heart = heartbeat.Heartbeat(tmp_path / "gone", "train", 0.0, None)
    heart.end(heartbeat.DONE)  # a disk that is full or gone stops no work


def test_the_card_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True, mem_get_info=lambda: (6 << 30, 24 << 30), get_device_name=lambda: "NVIDIA L4"
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert heartbeat.card_memory() == (18 << 30, 24 << 30)
    heartbeat.Heartbeat(tmp_path, "train", 0.0, None).end(heartbeat.WORKING)
    seen = json.loads((tmp_path / heartbeat.FILE).read_text())
    assert (seen["card"], seen["card_used_bytes"]) == ("NVIDIA L4", 18 << 30)


def test_status_says_what_the_lock_says(run: RunFolder) -> None:
    heartbeat.begin(run.path, "train").beat(
        label="training", done=3, total=10, unit="steps", tokens_per_s=81.2, seconds_left=90.0, note="loss 0.5"
    )
    beat = status(run)["heartbeat"]
    (working,) = heartbeat_lines(beat, True)
    assert working.startswith("train, working, 0s ago: training: 3/10 steps · 81 tok/s · loss 0.5 · 1m30s left")
    (dead,) = heartbeat_lines(beat, False)
    assert "ended without a word" in dead
    assert "left" not in dead
    card = {**beat, "card_used_bytes": 3 << 30, "card_total_bytes": 24 << 30, "cost": 1.5, "error": "why"}
    shown = heartbeat_lines(card, True)
    assert "card 3.0 of 24.0 GiB" in shown[0]
    assert "cost 1.50" in shown[0]
    assert shown[1] == "why"
    assert heartbeat_lines(None, False) == []


# -- the plan, corrected ---------------------------------------------------------------------------------------------


def news(**changed: Any) -> dict[str, Any]:
    value = {
        "state": "working", "updated_unix": time.time() + 1, "stage": "train", "label": "training", "unit": "steps",
        "done": 5, "total": 20, "done_here": 5, "seconds_here": 50.0, "seconds_left": 150.0, "price": None,
        "card": None,
    }  # fmt: skip
    return value | changed


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"done_here": 2}, False),
        ({"seconds_here": 3.0}, False),
        ({"seconds_left": None}, False),
        ({"unit": "samples", "total": 1000, "done_here": 19}, False),
        ({"unit": "samples", "total": 1000, "done_here": 20}, True),
    ],
)
def test_a_pace_is_believed_after_a_while(changed: dict[str, Any], expected: bool) -> None:
    assert believable(news(**changed)) is expected


def test_the_line_counts_what_is_left_and_what_was_done_before() -> None:
    # 150 s for the 15 steps that are left: 10 s each, 200 s for all 20.
    assert line("train", news(), None) == "plan corrected: train 3m20s in all at the measured pace."
    text = line("train", news(price=1.8), (60.0, 240.0))
    assert text.endswith("(by arithmetic 1m00s to 4m00s), cost 0.10.")


def test_it_is_said_once_and_only_of_its_own_stage(run: RunFolder) -> None:
    said: list[str] = []
    watch = PlanWatch(run, "train", said.append)
    watch()
    (run.path / heartbeat.FILE).write_text(json.dumps(news(stage="sample")))
    watch()
    (run.path / heartbeat.FILE).write_text(json.dumps(news(updated_unix=time.time() - 60)))  # of the process before
    watch()
    (run.path / heartbeat.FILE).write_text(json.dumps(news(state="stopped")))
    watch()
    assert said == []
    (run.path / heartbeat.FILE).write_text(json.dumps(news()))
    watch()
    watch()
    assert len(said) == 1
    assert "by arithmetic" in said[0]  # the packaged model's shape is known offline
    (run.path / heartbeat.FILE).write_text(json.dumps(news(stage="evaluate", unit="samples")))
    other: list[str] = []
    PlanWatch(run, "evaluate", other.append)()
    assert other == []


@pytest.mark.parametrize(
    ("name", "gib", "key"),
    [
        ("NVIDIA GeForce RTX 4090", 24, "rtx4090"),
        ("NVIDIA A100-SXM4-40GB", 40, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 80, "a100-80"),
        ("NVIDIA L4", 22, "l4"),
        ("NVIDIA L40S", 45, "l40s"),
        ("NVIDIA H100 80GB HBM3", 80, "h100"),
        ("NVIDIA RTX A6000", 48, "a6000"),
        ("NVIDIA GeForce GTX 1080", 8, None),
    ],
)
def test_cards_by_the_names_of_the_driver(name: str, gib: int, key: str | None) -> None:
    found = card_called(name, gib << 30)
    assert (found.key if found else None) == key
