"""Rounds against the base the run began with: in rounds.json, on the page, in the terminal, and under --strict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rounds_by_hand import SET, Stages, run_with_guard, write_guard
from test_pipeline import recipe_of

from ssd_lite.cli import main
from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import rounds
from ssd_lite.stages.pages.round_guard_section import against_lines, against_parts
from ssd_lite.stages.round_guard import against_base


def command(run: RunFolder, monkeypatch: pytest.MonkeyPatch, stages: Stages, *words: str) -> Result:
    """`ssd-lite run` on a run whose first round is done, with these later rounds."""
    monkeypatch.setattr(rounds, "run_stages", stages)
    return CliRunner().invoke(main, ["run", str(recipe_of(run)), "--out", str(run.path), *words])


def guards(run: RunFolder) -> dict[str, bool]:
    found = json.loads((run.path / "rounds.json").read_text())["against_base"]
    return {number: one["guard"][0]["dropped"] for number, one in found.items()}


def test_strict_judges_the_round_that_is_exported_against_the_first_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 1 is sound, round 2 is exported and lost 10 questions of 30, though none against the round before."""
    run, stages = run_with_guard(tmp_path / "r", 2, right=30), Stages({"2": (20, 0.6)})
    result = command(run, monkeypatch, stages, "--strict")
    assert guards(run) == {"1": False, "2": True}
    assert stages.exported == ["2"]
    assert result.exit_code == 1
    assert "the tuned model of round 2, the one exported, fell behind the base (--strict)." in result.stderr
    assert f"guard {SET}: Loss: the share of right answers fell by 16.7 points" in result.stderr
    assert f"round 2 against the base: guard {SET}: −16.7 [" in result.stdout
    assert command(run, monkeypatch, Stages({"2": (20, 0.6)})).exit_code == 0


def test_strict_does_not_judge_a_round_that_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 1 fell, round 2 got over it and is the best."""
    run = run_with_guard(tmp_path / "r", 2, right=20)
    assert command(run, monkeypatch, Stages({"2": (30, 0.6)}), "--strict").exit_code == 0
    assert guards(run) == {"1": True, "2": False}
    worse = run_with_guard(tmp_path / "s", 2, right=20)
    result = command(worse, monkeypatch, Stages({"2": (30, 0.0)}), "--strict")
    assert (result.exit_code, "of round 1, the one exported," in result.stderr) == (1, True)


def test_the_page_and_the_terminal_show_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_guard(tmp_path / "r", 2, right=30)
    assert command(run, monkeypatch, Stages({"2": (20, 0.6)})).exit_code == 0
    page = run.report.read_text(encoding="utf-8")
    assert f'<div class="verdict loss"><p>Round 2, guard {SET}: Loss: the share' in page
    assert f"guard {SET}</td>" in page
    lines = against_lines(json.loads((run.path / "rounds.json").read_text()))
    first, second = (line for line in lines if "guard" in line)
    assert click.unstyle(first) == first
    assert second.startswith("\x1b[31m")
    assert "DROP" in second


def test_a_loss_on_the_evaluation_set_is_named(tmp_path: Path) -> None:
    points: dict[str, Any] = {"mean": -0.2, "low": -0.3, "high": -0.1}
    fell = {"verdict": "loss", "sentence": "Loss: pass@1 fell.", "difference": {"1": points}, "guard": []}
    result = {"against_base": {"1": {**fell, "verdict": "no difference shown"}, "2": fell}}
    (line,) = against_lines(result)
    assert click.unstyle(line) == "round 2 against the base: evaluation set: Loss: pass@1 fell. DROP"
    assert "Round 2, evaluation set: Loss: pass@1 fell." in "".join(against_parts(result))
    sound = {"against_base": {"1": {**fell, "verdict": "gain"}}}
    assert (against_lines(sound), against_parts(sound), against_parts({})) == ([], [], [])


def test_another_set_or_none_is_not_compared(tmp_path: Path) -> None:
    run = run_with_guard(tmp_path / "r", 2, right=30)
    file = run.path / "evaluations" / "guard" / SET / "tuned" / "report.json"
    file.write_text(file.read_text().replace("ab" * 32, "cd" * 32))
    with pytest.raises(UserError, match="the set sums is another one now"):
        against_base(run, run)
    file.unlink()
    with pytest.raises(UserError, match="cannot be compared with the base"):
        against_base(run, run)
    write_guard(run, "tuned", 30)
    assert against_base(run, run)["guard"][0]["dropped"] is False
