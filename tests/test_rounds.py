"""Rounds: what a round's recipe is, when they stop, which is best, and three of them end to end on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_run import make_run
from locks import wait_until_free
from rounds_by_hand import Stages, breaks, finds_nothing, run_with_guard
from tiny_models import packaged_source, save_tiny, shared_cache

from ssd_lite.errors import UserError
from ssd_lite.recipe_file import differences
from ssd_lite.records import Sample, SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import rounds
from ssd_lite.stages.pages.rounds_section import rounds_section, rounds_table
from ssd_lite.stages.round_numbers import best_round, changes, numbers, reason_to_stop
from ssd_lite.stages.round_status import round_lines, status_with_rounds
from ssd_lite.stages.rounds import _reason, round_recipe, run_rounds

LAW = SamplingSettings(0.6, 20, 0.8, 0.0, 64)


def one_round(name: str, rate: float, vocabulary: int, seed: int, problems: int = 60) -> dict[str, Any]:
    """A round whose samples pass at a rate and draw their words from so many."""
    draw = np.random.default_rng(seed)
    rows, samples = [], []
    for i in range(problems):
        passed = int(draw.binomial(4, rate))
        rows.append({"problem_id": f"p{i}", "difficulty": None, "n": 4, "passed": passed})
        for index in range(4):
            text = " ".join(f"w{word}" for word in draw.integers(0, vocabulary, 12))
            samples.append(Sample(f"p{i}", index, (1,), (2,), text, "stop", 0.5, 0, LAW, "hf", "0", survivors=2.0))
    mean = float(np.mean([row["passed"] for row in rows])) / 4
    report = {
        "per_problem": rows,
        "pass_at_k": {"1": {"mean": mean, "low": mean, "high": mean}},
        "mean_tokens": 10.0,
        "no_code_rate": 0.1,
        "cap_rate": 0.0,
    }
    return numbers(name, report, samples, 0)


def test_a_round_starts_from_the_merged_model_with_other_draws_and_the_same_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", tuned_t=1.1)
    third = round_recipe(run.recipe, run, 3)
    changed = {line.partition(":")[0] for line in differences(run.recipe, third)}
    assert changed == {"name", "model.name", "sample.seed", "train.seed", "evaluate.base.temperature"}
    assert Path(third.model.name) == run.merged.absolute()
    assert (third.sample.seed, third.train.seed) == (2, 2)
    assert third.evaluate.base == third.evaluate.tuned == run.recipe.evaluate.tuned
    assert third.rounds == 1


@pytest.mark.parametrize(
    ("rate", "vocabulary", "words"),
    [(0.5, 40, None), (0.2, 40, "pass@1 fell"), (0.5, 6, "distinct_2 fell"), (0.9, 400, None)],
)
def test_a_fall_beyond_its_interval_stops(rate: float, vocabulary: int, words: str | None) -> None:
    change = changes(one_round("1", 0.5, 40, 1), one_round("2", rate, vocabulary, 2), 0)
    reason = reason_to_stop(change)
    assert (reason is None) is (words is None)
    assert words is None or (reason is not None and words in reason)


def test_a_slow_fall_of_small_steps_is_seen_against_round_1() -> None:
    """No step of these falls beyond its interval, all of them together do."""
    found = [one_round(name, rate, 40, seed) for seed, (name, rate) in enumerate(STEPS)]
    made = [changes(a, b, 0) for a, b in pairwise(found)]
    assert all(reason_to_stop(change) is None for change in made)
    assert _reason(found[:3], made[:2], 2, 0) is None
    assert "against round 1 pass@1 fell" in str(_reason(found, made, 4, 0))


STEPS = (("base", 0.6), ("1", 0.6), ("2", 0.57), ("3", 0.52), ("4", 0.46))


def test_self_bleu_stops_where_it_rises() -> None:
    assert reason_to_stop({"self_bleu": {"mean": 0.1, "low": 0.02, "high": 0.2}}) is not None
    assert reason_to_stop({"self_bleu": {"mean": -0.1, "low": -0.2, "high": -0.02}}) is None
    assert reason_to_stop({"pass@1": {"mean": -0.1, "low": -0.2, "high": 0.01}}) is None


def test_the_best_round_is_the_first_of_equals() -> None:
    low, high = one_round("base", 0.2, 40, 1), one_round("1", 0.8, 40, 2)
    assert best_round([low, high, {**high, "round": "2"}]) == "1"
    assert best_round([high, low]) == "1"


def test_rounds_are_shown_with_their_ending(tmp_path: Path) -> None:
    one = {key: value for key, value in one_round("base", 0.5, 40, 1).items() if key not in ("per_problem", "rates")}
    result = {
        "rounds": [one, {**one, "round": "1"}],
        "changes": [],
        "stopped": None,
        "best": "1",
        "warning": "Take <care>.",
    }
    assert "All 1 rounds were run. Best pass@k: round 1." in rounds_table(result)
    assert rounds_section(tmp_path) == ""
    (tmp_path / "rounds.json").write_text(json.dumps({**result, "stopped": "stopped after round 2: distinct_2 fell"}))
    page = rounds_section(tmp_path)
    assert "Stopped after round 2: distinct_2 fell." in page
    assert "Take &lt;care&gt;." in page


def test_each_figure_that_stops_the_rounds_is_drawn(tmp_path: Path) -> None:
    rounds = [one_round(name, rate, 40, seed) for seed, (name, rate) in enumerate(STEPS)]
    result = {"rounds": rounds, "changes": [], "stopped": None, "best": "1", "warning": "w"}
    (tmp_path / "rounds.json").write_text(json.dumps(result))
    page = rounds_section(tmp_path)
    for name in ("pass@1", "distinct-2", "self-BLEU", "entropy"):
        drawing = re.findall(rf'<svg [^>]*aria-label="{name} by round".*?</svg>', page, re.DOTALL)[0]
        assert re.findall(r">(base|\d)</text>", drawing)[-5:] == [name for name, _ in STEPS]
        assert (drawing.count("whisker base"), drawing.count("whisker tuned")) == (1, 4)
    one = {"distinct_2": None, "self_bleu": None}  # one completion a problem has no diversity
    (tmp_path / "rounds.json").write_text(json.dumps({**result, "rounds": [{**found, **one} for found in rounds]}))
    assert rounds_section(tmp_path).count("<svg") == 2


def quiet(line: str) -> None:
    """Nobody listens."""


def test_an_error_in_a_later_round_keeps_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, stages = run_with_guard(tmp_path / "r", 3, right=30), Stages({"2": (30, 0.6), "3": breaks})
    monkeypatch.setattr(rounds, "run_stages", stages)
    with pytest.raises(UserError, match="the disk is full"):
        run_rounds(run, 3, say=quiet)
    kept = json.loads((run.path / "rounds.json").read_text())
    assert [one["round"] for one in kept["rounds"]] == ["base", "1", "2"]
    assert (kept["asked"], kept["stopped"], kept["best"]) == (3, None, "2")
    assert list(kept["against_base"]) == ["1", "2"]
    assert "Not through: 2 of 3 rounds were run. Best pass@k: round 2." in run.report.read_text()
    assert round_lines(status_with_rounds(run)["rounds"])[-1].startswith("round 3 of 3: ")
    # Gone on with, the rounds that are there are not written anew, and the last one is added.
    before = (run.path / "rounds.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="the disk is full"):
        run_rounds(run, 3, say=quiet)
    assert (run.path / "rounds.json").stat().st_mtime_ns == before
    stages.plan["3"] = (30, 0.62)
    assert [one["round"] for one in run_rounds(run, 3, say=quiet)["rounds"]] == ["base", "1", "2", "3"]
    assert "All 3 rounds were run." in run.report.read_text()
    # Nothing is written again by a command that finds everything done.
    files = (run.path / "rounds.json", run.report)
    before_all = [file.stat().st_mtime_ns for file in files]
    run_rounds(run, 3, say=quiet)
    assert [file.stat().st_mtime_ns for file in files] == before_all


def test_a_round_with_nothing_to_learn_from_ends_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, stages = run_with_guard(tmp_path / "r", 4, right=30), Stages({"2": (30, 0.6), "3": finds_nothing})
    monkeypatch.setattr(rounds, "run_stages", stages)
    said: list[str] = []
    result = run_rounds(run, 4, say=said.append)
    why = "stopped after round 2: round 3 found nothing to learn from (0 of 4 samples left: 4 empty)"
    assert result["stopped"] == why
    assert result == json.loads((run.path / "rounds.json").read_text())
    assert [one["round"] for one in result["rounds"]] == ["base", "1", "2"]
    assert stages.exported == ["2"]
    assert any(why in line for line in said)
    assert f"{why[0].upper()}{why[1:]}. Best pass@k: round 2." in run.report.read_text()
    assert round_lines(status_with_rounds(run)["rounds"])[-1].startswith(f"rounds: {why[0].upper()}{why[1:]}.")


def test_another_error_is_not_taken_for_one_of_an_earlier_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, stages = run_with_guard(tmp_path / "r", 2, right=30), Stages({"2": finds_nothing})
    monkeypatch.setattr(rounds, "run_stages", stages)
    assert "round 2 found nothing" in run_rounds(run, 2, say=quiet)["stopped"]
    stages.plan["2"] = breaks
    with pytest.raises(UserError, match="the disk is full"):
        run_rounds(run, 2, say=quiet)


SMALL = (
    "threads=1",
    "model.gguf_type=f16",
    "problems.train_limit=3",
    "problems.evaluate_limit=6",
    "sample.max_new_tokens=8",
    "curate.cut_off=keep",
    "curate.drop_stubs=false",
    "train.gradient_accumulation_steps=1",
    "train.max_length=600",
    "evaluate.n=2",
    "evaluate.k=[1]",
    "evaluate.max_new_tokens=8",
    "export.types=[f16]",
)


@pytest.mark.slow
def test_three_rounds_killed_in_the_second_and_gone_on_with(tmp_path: Path) -> None:
    packaged_source()
    model, out = save_tiny(tmp_path / "tiny", "llama"), tmp_path / "r"
    environment = {**os.environ, "SSD_LITE_CACHE": str(shared_cache())}
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(f'{{"question": "What is {i} + {i}?", "answer": "{2 * i}"}}\n' for i in range(3, 6)))
    guard = f"evaluate.guard=[{{problems: 'questions:{sums}', max_new_tokens: 8}}]"
    words = [part for setting in (*SMALL, f"model.name={model}", guard, "rounds=3") for part in ("--set", setting)]
    command = [sys.executable, "-m", "ssd_lite", "run", "quickstart", "--out", str(out), *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (out / "rounds" / "2" / "adapter").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_free(out)
    seen = status_with_rounds(RunFolder.open(out))
    assert (seen["rounds"]["asked"], list(seen["rounds"]["made"])) == (3, ["2"])
    assert seen["rounds"]["made"]["2"]["next"] in (
        "train",
        "merge",
        "evaluate",
    )  # the orphan may finish it
    # The round's news, and no more "done", though the run itself is.
    assert seen["heartbeat"]["state"] in ("working", "stage done")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are unpublished" in done.stdout
    result = json.loads((out / "rounds.json").read_text())
    rounds = [one["round"] for one in result["rounds"]]
    assert rounds == ["base", "1", "2", "3"] or result["stopped"] is not None
    second = out / "rounds" / "2"
    # The base arms of round 2 are the tuned arms of round 1, taken and not sampled again: seconds and times are theirs.
    for arms in ("evaluations", "evaluations/guard/sums"):
        for file in ("samples.jsonl", "grades.jsonl"):
            assert (second / arms / "base" / file).read_bytes() == (out / arms / "tuned" / file).read_bytes()
    assert json.loads((second / "manifest.json").read_text())["model"]["name"] == str(out / "merged")
    assert (out / "samples.jsonl").read_text() != (second / "samples.jsonl").read_text()
    assert "<h2>Rounds</h2>" in (out / "report.html").read_text()
    assert 'aria-label="pass@1 by round"' in (out / "report.html").read_text()
    seen = status_with_rounds(RunFolder.open(out))
    assert all(one["next"] is None for one in seen["rounds"]["made"].values())
    assert (seen["rounds"]["result"], seen["heartbeat"]["state"]) == (result, "done")
    page = (out / "report.html").stat().st_mtime
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert "] sample" not in again.stdout
    assert (out / "report.html").stat().st_mtime == page
    shutil.rmtree(out)  # some 100 MB, made here
