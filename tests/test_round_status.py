"""What `ssd-lite status` says of rounds: asked for, not begun, at work, through, and made by an earlier command."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from evaluated_run import make_run

from ssd_lite import heartbeat
from ssd_lite.atomic import new_folder
from ssd_lite.cli import main
from ssd_lite.errors import Stopped, UserError
from ssd_lite.interrupt import STOP_AT
from ssd_lite.recipe_file import validate
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.report import report
from ssd_lite.stages.round_status import ASKED_KEY, round_lines, status_with_rounds
from ssd_lite.stages.rounds import round_recipe, run_rounds


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An evaluated run that is asked for three rounds and has one."""
    run = make_run(tmp_path / "r")
    run.note(ASKED_KEY, 3)
    return run


def begun(run: RunFolder, number: int) -> RunFolder:
    """A round that has its recipe and nothing else."""
    return RunFolder.create(run.path / "rounds" / str(number), round_recipe(run.recipe, run, number))


def through(run: RunFolder, number: int, rate: float) -> RunFolder:
    """A round that has all its stages but the export."""
    inner = make_run(run.path / "rounds" / str(number), tuned_rate=rate)
    inner.samples.write_text("{}\n{}\n")
    inner.train_rows.write_text("{}\n")
    (inner.merged / "ssd_lite_merge.json").rename(inner.path / "merge.json")
    inner.merged.rmdir()
    for path in (inner.adapter, inner.merged):
        with new_folder(path) as part:
            (part / "weights").write_text("w")
    (inner.path / "merge.json").rename(inner.merged / "ssd_lite_merge.json")
    report(inner)
    return inner


def write_result(run: RunFolder, names: Sequence[str], stopped: str | None) -> None:
    result = {"rounds": [{"round": name} for name in names], "stopped": stopped, "best": "1"}
    (run.path / "rounds.json").write_text(json.dumps(result))


def shown(run: RunFolder) -> list[str]:
    return round_lines(status_with_rounds(run)["rounds"])


def test_a_run_of_one_round_has_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    seen = status_with_rounds(run)
    assert seen["rounds"] is None
    assert round_lines(seen["rounds"]) == []


def test_rounds_to_come_are_named(run: RunFolder) -> None:
    rate = run.path / "evaluations" / "tuned" / "report.json"
    mean = 100 * json.loads(rate.read_text())["pass_at_k"]["1"]["mean"]
    first, rest = shown(run)
    assert first.startswith(f"round 1 of 3: this run, pass@1 {mean:.1f} % [")
    assert rest == "not begun: round 2 to 3"


def test_the_recipe_says_how_many_before_the_first_command_has(tmp_path: Path) -> None:
    made = make_run(tmp_path / "r")
    run = RunFolder.create(tmp_path / "new", validate({**made.recipe.model_dump(), "rounds": 2}, "here"))
    assert shown(run) == ["round 1 of 2: this run", "not begun: round 2"]


def test_a_round_at_work_is_work_in_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    through(run, 2, 0.5)
    third = begun(run, 3)
    (third.path / "samples.jsonl").write_text("{}\n{}\n{torn")
    with run_lock(third.path):
        monkeypatch.setattr(heartbeat, "_current", None)
        monkeypatch.setattr(heartbeat, "PERIOD_S", 0.0)
        heartbeat.begin(third.path, "sample").beat(label="sampling", done=2, total=9, unit="samples")
        seen = status_with_rounds(run)
        lines = round_lines(seen["rounds"])
    assert seen["in_use_by"]["pid"] == os.getpid()
    assert seen["rounds"]["made"]["2"]["next"] is None
    assert seen["rounds"]["made"]["3"]["next"] == "sample"
    assert set(seen["rounds"]["pass_at_k"]) == {"1", "2"}
    assert lines[1].startswith("round 2 of 3: done, ")
    assert "2 samples, 1 training rows, 60 steps, pass@1 " in lines[1]
    assert lines[2] == "round 3 of 3: at sample, 2 samples, 0 training rows, 0 steps"
    assert lines[3].startswith("  sample, working, ")
    assert "sampling: 2/9 samples" in lines[3]
    assert len(lines) == 4
    dead = status_with_rounds(run)
    assert dead["in_use_by"] is None
    assert "ended without a word" in round_lines(dead["rounds"])[3]


def test_a_round_whose_report_is_missing_is_not_at_its_export(run: RunFolder) -> None:
    second = through(run, 2, 0.5)
    second.report.unlink()
    assert shown(run)[1].startswith("round 2 of 3: at report, ")


def test_how_the_rounds_ended(run: RunFolder) -> None:
    through(run, 2, 0.2)
    write_result(run, ["base", "1", "2"], "stopped after round 2: pass@1 fell")
    lines = shown(run)
    assert lines[-1].startswith("rounds: Stopped after round 2: pass@1 fell. Best pass@k: round 1.")
    assert not any("not begun" in line for line in lines)


@pytest.mark.parametrize(("asked", "last"), [(2, "rounds: All 2 rounds were run."), (4, "not begun: round 3 to 4")])
def test_a_result_counts_for_the_rounds_it_is_of(run: RunFolder, asked: int, last: str) -> None:
    through(run, 2, 0.5)
    write_result(run, ["base", "1", "2"], None)
    run.note(ASKED_KEY, asked)
    assert shown(run)[-1].startswith(last)


def test_a_round_beyond_those_asked_for_is_shown_and_what_is_no_round_is_not(run: RunFolder) -> None:
    through(run, 3, 0.5)
    run.note(ASKED_KEY, 2)
    for name in ("notes", "4"):  # 4 was killed before it had a recipe
        (run.path / "rounds" / name).mkdir()
    (run.path / "rounds.json").write_text("{torn")
    lines = shown(run)
    assert [line.partition(":")[0] for line in lines] == ["round 1 of 2", "round 3"]


@pytest.fixture
def done(run: RunFolder) -> RunFolder:
    """The run, whose heartbeat says that it is done, ready for its second round."""
    (run.arm("tuned").path / "made_with.json").write_text("{}")
    heartbeat.Heartbeat(run.path, "report", 0.0, None).end(heartbeat.DONE)
    return run


def test_a_limit_that_stops_a_round_stops_the_run(done: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AT, "0")
    states = []

    def say(line: str) -> None:
        if line.startswith("Round 2"):
            seen = status_with_rounds(done)
            states.append((seen["heartbeat"]["state"], seen["in_use_by"]["pid"]))

    with pytest.raises(Stopped, match=r"before the stage 'sample'.* limit of time or money"):
        run_rounds(done, 4, say=say)
    assert states == [("working", os.getpid())]
    seen = status_with_rounds(done)
    assert (seen["heartbeat"]["state"], seen["in_use_by"]) == ("stopped", None)
    assert seen["rounds"]["asked"] == 4
    assert round_lines(seen["rounds"])[1:] == [
        "round 2 of 4: at sample, 0 samples, 0 training rows, 0 steps",
        "not begun: round 3 to 4",
    ]


def test_a_second_command_is_refused_and_says_nothing_into_the_heartbeat(done: RunFolder) -> None:
    with run_lock(done.path), pytest.raises(UserError, match="in use by"):
        run_rounds(done, 4, say=lambda line: None)
    seen = status_with_rounds(done)
    assert (seen["heartbeat"]["state"], seen["rounds"]["asked"], seen["rounds"]["made"]) == ("done", 3, {})


def everything(folder: Path) -> dict[str, Any]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_command_shows_them_and_changes_nothing(run: RunFolder) -> None:
    begun(run, 2)
    before = everything(run.path)
    text = CliRunner().invoke(main, ["status", str(run.path)], catch_exceptions=False).output
    value = json.loads(CliRunner().invoke(main, ["status", str(run.path), "--json"], catch_exceptions=False).stdout)
    assert everything(run.path) == before
    assert "\nround 2 of 3: at sample, 0 samples" in text
    assert "no process works in it" in text
    assert text.rstrip().endswith("not begun: round 3")
    assert (value["rounds"]["asked"], list(value["rounds"]["made"])) == (3, ["2"])
