"""`ssd-lite diagnose`: of a model, of a run before and after training; its advice, page and place in the report."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from evaluated_run import make_run
from test_report import Outline
from tiny_models import PACKAGED, cache_in, save_tiny

from ssd_lite.cli import main
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe_file import validate
from ssd_lite.records import SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.diagnose import diagnose_run
from ssd_lite.stages.diagnosis import reading as diagnosis_reading
from ssd_lite.stages.diagnosis.advice import advise, judge_noise, matched_temperature, truncation
from ssd_lite.stages.diagnosis.reading import TEMPERATURES, in_drawn_order, law_set
from ssd_lite.stages.pages.diagnosis_plots import lines
from ssd_lite.stages.pages.diagnosis_section import diagnosis, page_of, terminal_text
from ssd_lite.stages.report import report
from ssd_lite.stages.sample import sample

LAW = SamplingSettings(1.1, 20, 0.8, 0.0, 16)


def problem_set(path: Path, count: int) -> Path:
    rows = [{"id": f"p{n}", "prompt": f"Write f{n}(), which returns {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- a model alone ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_without_a_run(packaged_model, tmp_path: Path) -> None:
    problems = problem_set(tmp_path / "set.jsonl", 9)
    words = [
        *("diagnose", PACKAGED, "--problems", str(problems), "--temperature", "1.1", "--max-new-tokens", "5"),
        *("--limit", "8", "--threads", "1", "--out", str(tmp_path / "d"), "--json"),
    ]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "d" / "diagnosis.json").read_text()) == {k: found[k] for k in found if k != "out"}
    base = found["models"]["base"]
    assert (found["state"], found["samples"], found["between"]) == ("base", 8, None)
    assert found["law"] == {"temperature": 1.1, "top_k": 20, "top_p": 0.8, "min_p": 0.0, "max_new_tokens": 5}
    assert sum(base["kinds"].values()) == pytest.approx(1.0, abs=1e-5)
    assert 0 < base["tail"] < 1
    assert len(base["mass_by_rank"]) == 60
    assert base["mass_by_rank"] == sorted(base["mass_by_rank"], reverse=True)
    assert [row["temperature"] for row in base["curves"]["train"]] == list(TEMPERATURES)
    tails = [row["tail"] for row in base["curves"]["train"]]
    assert tails[0] < tails[-1]
    own = [json.loads(line) for line in (tmp_path / "d" / "samples.jsonl").read_text().splitlines()]
    tokens = sum(len(one["completion_ids"]) for one in own)
    assert base["positions"] == tokens
    drawn_from = sum(one["entropy_nats"] * len(one["completion_ids"]) for one in own) / tokens
    assert base["law_entropy"] == pytest.approx(drawn_from, abs=0.02)  # what the sampler itself counted
    assert found["generations"]["reference"]["samples"] == 8
    assert "mass outside the support" in result.stderr
    outline = Outline((tmp_path / "d" / "diagnosis.html").read_text())
    assert outline.tags["svg"] == 4


def test_mistakes_are_named_as_options(tmp_path: Path) -> None:
    bad = CliRunner().invoke(main, ["diagnose", PACKAGED, "--temperature", "-1", "--out", str(tmp_path / "d")])
    assert bad.exit_code == 2
    assert "--temperature" in bad.stderr
    missing = CliRunner().invoke(main, ["diagnose", str(tmp_path / "nothing"), "--out", str(tmp_path / "d")])
    assert missing.exit_code == 2
    assert "no model named" in missing.stderr


# -- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of a tiny random model whose samples are made: 10 problems, 2 samples each."""
    folder = tmp_path_factory.mktemp("sampled")
    problem_set(folder / "train.jsonl", 10)
    tests = {"kind": "functional", "entry_point": "one", "cases": [[[], 1]]}
    (folder / "eval.jsonl").write_text(json.dumps({"id": "e", "prompt": "one() returns 1.", "tests": tests}) + "\n")
    value: dict[str, Any] = {
        "name": "d",
        "threads": 1,
        "model": {"name": str(sharpen(save_tiny(folder / "model"), 5.0)), "gguf_type": "f32"},
        "problems": {"train": str(folder / "train.jsonl"), "evaluate": str(folder / "eval.jsonl")},
        "sample": {"temperature": 1.2, "max_new_tokens": 12, "n": 2, "engine": "hf"},
        "evaluate": {"base": {"temperature": 0.8}, "tuned": {"temperature": 1.0, "top_p": 0.9}, "max_new_tokens": 12},
    }
    run = RunFolder.create(folder / "run", validate(value, "test"))
    with cache_in(folder / "cache"):
        sample(run)
    return run


@pytest.fixture
def run(sampled: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(sampled.path, tmp_path / "run")))


def sharpen(folder: Path, factor: float) -> Path:
    """Multiply all logits of a model: its law at T becomes what it was at T / factor."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)
    model.save_pretrained(folder)
    return folder


def merge_as(run: RunFolder, factor: float) -> None:
    """A tuned model that is the base with logits `factor` times as large."""
    sharpen(Path(shutil.copytree(run.recipe.model.name, run.merged)), factor)
    run.finish("merge", {"weights_sha256": "00" * 32}, 1.0)


def test_a_run_before_training_reads_its_own_samples(run: RunFolder) -> None:
    found = diagnose_run(run, limit=12)
    assert found == json.loads((run.path / "diagnosis.json").read_text())
    assert (found["state"], found["samples"], found["tuned_sha256"]) == ("base", 12, None)
    assert list(found["models"]) == ["base"]
    assert found["note"] == "12 of the run's 20 samples"
    assert found["evaluate_law"]["top_p"] == 0.9
    assert [row["temperature"] for row in found["models"]["base"]["curves"]["evaluate"]] == list(TEMPERATURES)
    assert found["generations"]["reference"]["temperature"] == 0.8
    smaller = diagnose_run(run, limit=5)
    assert smaller["samples"] == 5
    # The same reference, of which only the problems that were read count.
    assert smaller["generations"]["reference"]["samples"] <= smaller["generations"]["paired"]["samples"] == 5
    assert len((run.path / "diagnosis" / "reference.jsonl").read_text().splitlines()) == 10


def test_after_training_both_models_read_the_same_tokens(run: RunFolder) -> None:
    merge_as(run, 1.25)
    found = diagnose_run(run)
    base, tuned, between = found["models"]["base"], found["models"]["tuned"], found["between"]
    assert found["state"] == "base and tuned"
    assert base["positions"] == tuned["positions"] == between["positions"]
    assert between["swaps"] == 0.0  # a change of temperature keeps ranks
    assert between["rank_agreement"] == pytest.approx(1.0, abs=1e-3)
    assert between["locks"]["count"] > 0
    assert between["locks"]["sharpened"] == 1.0
    assert between["forks"]["entropy_tuned"] < between["forks"]["entropy_base"]
    assert between["kept"]["tuned"] > between["kept"]["base"]
    assert tuned["entropy"] < base["entropy"]
    assert tuned["mass_by_rank"] == pytest.approx(between["mass_by_base_rank"], abs=1e-3)
    # Base at 0.8 is tuned at 1.0; the curve has a point at both.
    assert found["advice"]["matched"]["tuned_temperature"] == pytest.approx(1.0, abs=0.002)
    text = terminal_text(found)
    assert re.search(r"locks that are sharper +100.0 % +100.0 %", text)
    unseen = found["between_reference"]
    assert unseen["positions"] != between["positions"]
    assert (unseen["swaps"], unseen["locks"]["sharpened"]) == (0.0, 1.0)
    page = (run.path / "diagnosis.html").read_text()
    assert page.count('class="line tuned"') == page.count('class="line base"') == 4


def test_an_equal_model_changes_nothing(run: RunFolder) -> None:
    shutil.copytree(run.recipe.model.name, run.merged)
    run.finish("merge", {"weights_sha256": "00" * 32}, 1.0)
    found = diagnose_run(run, limit=4)
    assert found["models"]["base"] == found["models"]["tuned"]
    assert (found["between"]["swaps"], found["between"]["rank_agreement"]) == (0.0, 1.0)
    assert found["between"]["forks"]["kept"] in (1.0, None)


def test_a_run_without_samples_names_the_stage(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "r", validate({"name": "r", "model": {"name": PACKAGED}}, "test"))
    result = CliRunner().invoke(main, ["diagnose", str(run.path)])
    assert result.exit_code == 2
    assert f"ssd-lite sample {run.path}" in result.stderr
    option = CliRunner().invoke(main, ["diagnose", str(run.path), "--top-k", "5"])
    assert option.exit_code == 2
    assert "--top-k" in option.stderr


def test_a_stop_leaves_no_half_diagnosis(run: RunFolder, monkeypatch) -> None:
    monkeypatch.setattr(diagnosis_reading, "stop_requested", lambda: True)
    with pytest.raises(Stopped):
        diagnose_run(run, limit=4)
    assert not (run.path / "diagnosis.json").exists()


# -- laws, order, advice ---------------------------------------------------------------------------------------------


def test_laws_of_both_truncations_without_repeats() -> None:
    alone = law_set(LAW, None)
    assert alone.laws[0] == LAW
    assert len(alone.laws) == 1 + len(TEMPERATURES)
    same = law_set(SamplingSettings(1.6, 20, 0.8, 0.0, 16), SamplingSettings(0.7, 20, 0.8, 0.0, 99))
    assert len(same.laws) == len(TEMPERATURES)  # 1.6 is on the curve, and both curves are one
    assert same.curves["train"] == same.curves["evaluate"]
    other = law_set(LAW, SamplingSettings(0.7, 20, 0.95, 0.0, 99))
    assert [other.laws[n].top_p for n in other.curves["evaluate"]] == [0.95] * len(TEMPERATURES)


def test_a_smaller_limit_takes_some_of_a_larger(run: RunFolder) -> None:
    from ssd_lite.stages.answers import read_samples

    samples = read_samples(run.samples)
    drawn = in_drawn_order(samples, 0)
    assert sorted(one.key for one in drawn) == sorted(one.key for one in samples)
    assert [one.key for one in in_drawn_order(samples[::-1], 0)] == [one.key for one in drawn]
    assert [one.key for one in in_drawn_order(samples, 1)] != [one.key for one in drawn]


def made_up(**changes: Any) -> dict[str, Any]:
    """A report with what the advice reads; nothing in it looks like noise, and the truncation has work to do."""
    row = {"tail": 0.2, "forks_cut": 0.0, "law_entropy": 0.5}
    base = {"tail": 0.1, "tail_positions": 0.8, "tail_at_1": 0.09, "minus_log_kept": 0.1, "locks_closed": 0.7}
    base |= {"forks_cut": 0.05, "curves": {"train": [{**row, "temperature": t} for t in TEMPERATURES]}}
    own = {"samples": 12, "entropy": 1.0, "entropy_error": 0.05, "cap_rate": 0.1}
    value = {
        "law": {"temperature": 1.6, "top_k": 20, "top_p": 0.8, "min_p": 0.0},
        "models": {"base": base},
        "generations": {"own": own, "paired": own, "reference": {**own, "temperature": 0.7}},
        "base_temperature": 0.7,
    }
    value = copy.deepcopy(value)
    for path, change in changes.items():
        *above, last = path.split("__")
        inner = value
        for key in above:
            inner = inner[key]
        inner[last] = change
    return value


def test_t_eval_comes_from_t_train_and_stays_among_the_presets() -> None:
    found = advise(made_up())
    assert (found["t_train"], found["t_eval"], found["noise"]) == (1.6, 0.75, False)
    low = advise(made_up(law__temperature=0.8))
    assert (low["t_train"], low["t_eval"]) == (0.8, 1.1)
    assert "1.50" in low["t_eval_words"]


@pytest.mark.parametrize(
    ("changes", "noise"),
    [
        ({"generations__paired__entropy": 1.5}, True),
        ({"generations__paired__entropy": 1.2}, False),
        ({"generations__paired__entropy": 1.3, "generations__paired__entropy_error": 0.2}, None),
        ({"generations__paired__cap_rate": 0.6}, True),
        ({"generations__paired__cap_rate": 0.3}, None),  # 20 points, and the standard error is 16
        ({"generations__paired__samples": 5}, None),
        ({"generations__reference": None}, None),
    ],
)
def test_noise_is_judged_beside_the_reference(changes: dict[str, Any], noise: bool | None) -> None:
    value = made_up(**changes)
    assert judge_noise(value)[0] is noise
    found = advise(value)
    assert (found["t_train"] is None) == (noise is not False)
    assert (found["t_eval"] is None) == (noise is not False)


def test_advice_against_little_tail_and_cut_forks_names_where_it_ends() -> None:
    little = made_up(models__base__tail=0.005, law__temperature=0.5)
    little["models"]["base"]["curves"]["train"][1]["tail"] = 0.002  # T 0.6
    found = advise(little)
    assert found["t_train"] is None
    assert found["t_train_words"].startswith("Higher than 0.5: hardly anything")
    assert "ends at T 0.8" in found["t_train_words"]
    assert found["truncation"]["verdict"] == "little"
    cut = advise(made_up(models__base__forks_cut=0.47, law__temperature=0.6))
    assert cut["t_train"] is None
    assert "47 % of the forks" in cut["t_train_words"]


def test_without_truncation_there_is_nothing_to_remove() -> None:
    off = made_up(law__top_k=0, law__top_p=1.0, models__base__tail=0.0)
    assert truncation(off)["verdict"] == "nothing"
    assert "only changes the temperature" in truncation(off)["words"][0]
    assert truncation(made_up(models__base__tail=0.0005))["verdict"] == "nothing"


def test_matched_temperature_is_between_the_points_or_not_said() -> None:
    value = made_up()
    assert matched_temperature(value) is None
    curve = [{"temperature": t, "law_entropy": t / 2} for t in (0.5, 1.0, 1.5)]
    half = [{"temperature": t, "law_entropy": t / 4} for t in (0.5, 1.0, 1.5)]
    value["models"]["base"]["curves"]["evaluate"] = curve
    value["models"]["tuned"] = {"curves": {"evaluate": half}}
    found = matched_temperature(value)
    assert found is not None
    assert found["tuned_temperature"] == pytest.approx(1.4)
    value["base_temperature"] = 1.4
    assert matched_temperature(value) is None  # 2.8 lies outside the curve


# -- the page, the report, the drawing -------------------------------------------------------------------------------


@pytest.fixture
def diagnosed(run: RunFolder) -> dict[str, Any]:
    return diagnose_run(run, limit=4)


def test_the_report_shows_the_diagnosis_and_is_written_again(diagnosed, tmp_path: Path) -> None:
    made = make_run(tmp_path / "made")
    report(made)
    assert "Diagnosis" not in made.report.read_text()
    assert diagnosis(made.path) == ""
    (made.path / "diagnosis.json").write_text(json.dumps(diagnosed))
    report(made)
    outline = Outline(made.report.read_text())
    assert "Diagnosis: the model at each position" in outline.words
    assert diagnosed["note"] in outline.words
    made.report.write_text("as it was")
    report(made)  # younger than the diagnosis: left alone
    assert made.report.read_text() == "as it was"
    (made.path / "diagnosis.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape("diagnosis.json: is damaged")):
        diagnosis(made.path)


def test_the_page_escapes_what_it_is_given(diagnosed) -> None:
    page = page_of({**diagnosed, "name": "<script>x</script>", "note": "a & <b>"})
    assert "<script>" not in page
    assert "a &amp; &lt;b&gt;" in page
    Outline(page)


def test_lines_stand_where_they_belong() -> None:
    drawing = lines({"base": [(0.0, 0.0), (1.0, 10.0)], "tuned": [(0.0, 5.0), (1.0, 5.0)]}, "t", "x", "y")
    base, tuned = (
        [tuple(map(float, pair.split(","))) for pair in points.split()]
        for points in re.findall(r'points="([^"]+)"', drawing)
    )
    assert base[0][1] > tuned[0][1] == tuned[1][1] > base[1][1]  # down is more
    assert tuned[0][1] == pytest.approx((base[0][1] + base[1][1]) / 2, abs=0.1)
    assert base[0][0] == tuned[0][0] < base[1][0]


def test_powers_of_ten_are_at_even_distances_and_zero_is_left_out() -> None:
    drawing = lines({"base": [(1, 1.0), (2, 0.1), (3, 0.01), (4, 0.0)]}, "t", "x", "y", logarithmic=True)
    heights = [float(pair.split(",")[1]) for pair in re.findall(r'points="([^"]+)"', drawing)[0].split()]
    assert len(heights) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert ">0.1<" in drawing
    assert lines({"base": [(1, 0.0)]}, "t", "x", "y", logarithmic=True) == ""


def test_a_mark_outside_the_axis_is_not_drawn() -> None:
    points = {"base": [(0.3, 1.0), (2.0, 2.0)]}
    assert "T_train" in lines(points, "t", "x", "y", mark=(1.6, "T_train"))
    assert "T_train" not in lines(points, "t", "x", "y", mark=(2.5, "T_train"))
