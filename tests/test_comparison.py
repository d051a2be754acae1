"""Comparisons: each arm differs in one thing, the split, the arithmetic of rows and verdict, and a whole small one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from locks import wait_until_free
from tiny_models import packaged_source, save_tiny, shared_cache

from ssd_lite.errors import UserError
from ssd_lite.grading.statistics import paired_bootstrap
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import differences, load_recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import Problem
from ssd_lite.stages.compare import prepare, share_samples
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.page import render, terminal_table
from ssd_lite.stages.comparison.plan import ArmOrder, candidates, completions, read_order, split, trained_runs
from ssd_lite.stages.comparison.rows import BEST, MATCHED, TRAINING, Row, best_decoding, numbers
from ssd_lite.stages.comparison.rows import differences as gaps
from ssd_lite.stages.comparison.sets import problems_of
from ssd_lite.stages.comparison.verdict import verdict

T6, T11 = Decoding(temperature=0.6), Decoding(temperature=1.1)


def recipe(*settings: str) -> Recipe:
    return load_recipe("quickstart", settings)


def changed(one: Recipe, other: Recipe) -> set[str]:
    return {line.partition(":")[0] for line in differences(one, other)} - {"name"}


# -- the plan --------------------------------------------------------------------------------------------------------


def test_every_arm_differs_from_ssd_in_its_own_keys_alone() -> None:
    chosen = recipe(
        "compare.arms=[ssd,soft,null_arm,rft,distill,grpo]",
        "compare.teacher=other",
        "compare.seeds=[0,7]",
        "compare.variants={wide: [train.lora_r=64, train.learning_rate=3e-5]}",
    )
    runs = {trained.name: trained for trained in trained_runs(chosen)}
    assert list(runs)[:3] == ["ssd-0", "soft-0", "null_arm-0"]
    assert len(runs) == 14
    ssd = runs["ssd-0"].recipe
    assert changed(chosen, ssd) == set()
    law = {"sample.temperature", "sample.top_k", "sample.top_p", "sample.null_arm", "sample.targets"}
    expected = {
        "soft": {"train.target"},
        "null_arm": law,
        "rft": {"curate.only_correct"},
        "distill": {"sample.teacher", "sample.targets"},
        "wide": {"train.lora_r", "train.learning_rate"},
    }
    for arm, keys in expected.items():
        assert changed(ssd, runs[f"{arm}-0"].recipe) == keys, arm
        assert changed(runs[f"{arm}-0"].recipe, runs[f"{arm}-7"].recipe) == {"sample.seed", "train.seed"}
    reward = {"num_generations", "temperature", "max_completion_length", "beta"}
    assert changed(ssd, runs["grpo-0"].recipe) == {f"train.grpo.{key}" for key in reward}
    null = runs["null_arm-0"].recipe.sample
    assert (null.temperature, null.top_k, null.top_p, null.min_p) == (1.0, 0, 1.0, 0.0)
    assert (runs["grpo-0"].stages, runs["ssd-0"].stages[0]) == (("train", "merge"), "sample")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["compare.arms=[distill]", "compare.best=[]"], "needs a teacher"),
        (["compare.arms=[ssd,other]"], "compare.arms"),
        (["compare.best=[rft2]"], "not among compare.arms"),
        (["compare.variants={ssd: []}"], "is an arm already"),
        (["compare.variants={Wide-1: []}"], "compare.variants"),
        (["compare.variants={wide: [train.lora_rank=3]}"], "unknown key; did you mean|unknown key"),
        (["compare.variants={wide: [train.target=soft, sample.targets=drop]}"], "needs the laws"),
        (["compare.seeds=[0,1,0]"], "seeds: 0 stands twice"),
        *(
            ([f"compare.variants={{mine: [{setting}]}}"], f"mine cannot have a {setting.partition('=')[0]} of its own")
            for setting in (
                "evaluate.max_new_tokens=17",
                "evaluate.base.temperature=0.1",
                "problems.evaluate=humaneval",
                "compare.dev_n=1",
                "rounds=3",
                "threads=1",
                "export.check=false",
                "model.name=other",
                "name=x",
            )
        ),
        (["compare.seeds=[0,1]", "compare.variants={mine: [sample.seed=9]}"], "compare.seeds says it for every arm"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained_runs(recipe(*settings))


def test_candidates_hold_what_the_recipe_names_and_the_grid_each_once() -> None:
    found = candidates(recipe("compare.grid={temperature: [0.6, 0.3], top_p: [0.8, 0.95], min_p: [0.0, 0.1]}"))
    assert found[:2] == [T6, T11]  # base and tuned alike, then the training decoding
    assert len(found) == len(set(found)) == 2 + 8 - 1
    assert Decoding(temperature=0.3, top_p=0.95, min_p=0.1) in found


def test_a_variant_may_differ_in_what_is_trained_and_on_which_prompts() -> None:
    for setting in (
        "sample.seed=9",
        "curate.cut_off=keep",
        "train.lora_r=3",
        "merge.check_prompts=1",
        "problems.train=x",
    ):
        runs = {run.arm: run.recipe for run in trained_runs(recipe(f"compare.variants={{mine: [{setting}]}}"))}
        assert changed(runs["ssd"], runs["mine"]) == {setting.partition("=")[0]}


def test_a_variant_that_learns_from_tests_is_known_as_such() -> None:
    variants = "compare.variants={clean: [curate.only_correct=true], more: ['train.grpo={num_generations: 8}']}"
    runs = {trained.arm: trained for trained in trained_runs(recipe("compare.arms=[ssd]", variants))}
    assert [runs[arm].is_graded for arm in ("ssd", "clean", "more")] == [False, True, True]
    assert (runs["clean"].stages[0], runs["more"].stages) == ("sample", ("train", "merge"))


def test_base_and_arm_choose_their_decodings_with_as_many_completions() -> None:
    chosen = recipe("compare.seeds=[0,1,2]", "compare.dev_n=4", "evaluate.n=6", "compare.extra_n=2")
    wanted = {
        ("base", "dev"): 12,
        ("ssd-1", "dev"): 4,
        ("base", "test"): 6,
        ("ssd-1", "test"): 6,
        ("base", "humaneval"): 2,
    }
    assert {place: completions(chosen, ArmOrder(place[0], T6, place[1])) for place in wanted} == wanted


def problems(count: int) -> list[Problem]:
    tiers = ("easy", "easy", "medium", "hard")
    return [Problem(f"p{n}", ({"role": "user", "content": str(n)},), difficulty=tiers[n % 4]) for n in range(count)]


def test_the_split_is_drawn_once_tier_by_tier_and_leaves_nothing_out() -> None:
    everything = problems(80)
    dev, test = split(everything, 0.4, seed=1)
    assert sorted(p.id for p in dev + test) == sorted(p.id for p in everything)
    assert [sum(p.difficulty == tier for p in dev) for tier in ("easy", "medium", "hard")] == [16, 8, 8]
    assert dev == sorted(dev, key=everything.index)
    assert (dev, test) == split(everything, 0.4, seed=1)
    assert dev != split(everything, 0.4, seed=2)[0]
    with pytest.raises(UserError, match="cannot be split"):
        split(everything[:1], 0.4, seed=1)


@pytest.mark.parametrize("decoding", [T6, Decoding(temperature=1 / 3, top_k=0, top_p=1.0, min_p=0.05)])
@pytest.mark.parametrize("place", ["dev", "humaneval", "/some where/set--1.jsonl"])
def test_the_name_of_an_arm_is_read_back(decoding: Decoding, place: str) -> None:
    order = ArmOrder("null_arm-12", decoding, place)
    assert read_order(order.name) == order
    assert "/" not in order.folder_name


@pytest.mark.parametrize(
    "name", ["", "base", "base--T0.6--dev", "base--Tx-k1-p1-m0--dev", "base--T0-k1-p1.0-m0.0--dev"]
)
def test_no_name_of_an_arm(name: str) -> None:
    with pytest.raises(UserError, match="names no arm"):
        read_order(name)


# -- rows and verdict ------------------------------------------------------------------------------------------------


def report(passed: Sequence[int], n: int = 4, tokens: int = 100) -> dict[str, Any]:
    """An arm's report with the numbers that rows read."""
    rows = [{"problem_id": f"p{i}", "difficulty": None, "n": n, "passed": c} for i, c in enumerate(passed)]
    mean = float(np.mean(passed)) / n
    rates = {"no_code_rate": 0.0, "cap_rate": 0.1, "mean_tokens": 50.0, "hedging_per_1000_words": 1.0}
    return {"per_problem": rows, "n": n, "pass_at_k": {"1": {"mean": mean}}, "tokens": tokens, **rates}


def drawn(rate: float, seed: int, count: int = 60) -> list[int]:
    return np.random.default_rng(seed).binomial(4, rate, count).tolist()


def rows_of(ssd: Sequence[Sequence[int]], base: Sequence[int], best: Sequence[int]) -> list[dict[str, Any]]:
    found = [
        Row("base", MATCHED, T6, [report(base)]),
        Row("base", TRAINING, T11, [report(base)]),
        Row("base", BEST, T11, [report(best)]),
        Row("ssd", MATCHED, T6, [report(passed) for passed in ssd]),
        Row("null_arm", MATCHED, T6, [report(base) for _ in ssd]),
    ]
    cost = {"tokens_sampled": 10, "tokens_trained": 20, "seconds": 3.0, "rows": [79, 80], "steps": [10, 10]}
    cost |= {"tokens_answered": 30, "seconds_answered": 4.0}
    controls = [row for row in found if row.model != "ssd"]
    return [numbers(row, controls, cost, 1) for row in found]


def test_a_difference_of_one_seed_is_the_paired_bootstrap() -> None:
    base, ssd = drawn(0.4, 1), drawn(0.5, 2)
    row, control = Row("ssd", MATCHED, T6, [report(ssd)]), Row("base", MATCHED, T6, [report(base)])
    found = gaps(row, control, 1)["1"]
    plain = paired_bootstrap([c / 4 for c in base], [c / 4 for c in ssd], 1)
    assert found["mean"] == pytest.approx(plain.mean)
    assert (found["low"], found["high"]) == (pytest.approx(plain.low, abs=0.01), pytest.approx(plain.high, abs=0.01))


def test_seeds_are_paired_with_seeds_and_the_base_stands_against_each() -> None:
    one, two = [4, 0, 2], [2, 2, 2]
    row = Row("ssd", MATCHED, T6, [report(one), report(two)])
    same = Row("null_arm", MATCHED, T6, [report(one), report(two)])
    assert gaps(row, same, 0)["1"]["mean"] == gaps(row, same, 0)["1"]["high"] == 0.0
    swapped = Row("null_arm", MATCHED, T6, [report(two), report(one)])
    assert gaps(row, swapped, 0)["1"]["high"] > 0.0
    base = Row("base", MATCHED, T6, [report([0, 0, 0])])
    assert gaps(row, base, 0)["1"]["mean"] == pytest.approx(0.5)


def test_arms_of_other_problems_are_not_compared() -> None:
    other = report([1, 2])
    other["per_problem"][0]["problem_id"] = "q"
    with pytest.raises(ValueError, match="same problems"):
        gaps(Row("ssd", MATCHED, T6, [report([1, 2])]), Row("base", MATCHED, T6, [other]), 0)


@pytest.mark.parametrize(
    ("ssd", "best", "kind", "words"),
    [
        (0.8, 0.3, "contribution", "Training contributed +"),
        (0.3, 0.3, "none shown", "No contribution shown"),
        (0.2, 0.7, "loss", "Training cost -"),
    ],
)
def test_the_verdict_is_against_the_base_at_its_best(ssd: float, best: float, kind: str, words: str) -> None:
    """The base under its own decoding stays at 0.3: what it does at its best alone turns the verdict."""
    rows = rows_of([drawn(ssd, seed) for seed in (3, 4, 5)], drawn(0.3, 1), drawn(best, 2))
    found = verdict(rows, 60)
    assert found["verdict"] == kind
    assert found["sentence"].startswith(words)
    assert "60 test problems, 3 seeds" in found["sentence"]
    assert ("this set could show" in found["sentence"]) is (kind == "none shown")
    assert any("null arm" in line for line in found["also"])
    assert any("same decoding" in line for line in found["also"])


def test_training_alike_is_said_only_of_as_many_rows_and_steps() -> None:
    rows = rows_of([drawn(0.8, 3), drawn(0.8, 4)], drawn(0.3, 1), drawn(0.3, 2))
    line = next(line for line in verdict(rows, 60)["also"] if "null arm" in line)
    assert "trained alike" in line
    assert line.endswith("The mechanism is more than training as such.")
    null = next(row for row in rows if row["model"] == "null_arm")
    null |= {"rows": [94, 93], "steps": [12, 12]}
    line = next(line for line in verdict(rows, 60)["also"] if "null arm" in line)
    assert "SSD was trained on 79, 80 rows and 10, 10 steps, the null arm on 94, 93 rows and 12, 12 steps" in line
    assert "alike on" not in line
    assert "more than training as such" not in line
    null |= {"rows": [79, 80], "steps": [10, 12]}
    assert "Not alike" in next(line for line in verdict(rows, 60)["also"] if "null arm" in line)
    page = render(recipe(), result_of(rows))
    for cell in ("79, 80", "10, 10", "10, 12"):
        assert f">{cell}<" in page


def test_without_ssd_the_verdict_names_the_arm_it_speaks_of() -> None:
    rows = [row for row in rows_of([drawn(0.9, 3)], drawn(0.3, 1), drawn(0.3, 2)) if row["model"] != "null_arm"]
    for kind, base, words in (
        ("contribution", 0.0, "Training (soft SSD) contributed +"),
        ("none shown", -0.5, "No contribution of soft SSD shown"),
        ("loss", -1.0, "Training (soft SSD) cost -"),
    ):
        soft = {**rows[-1], "model": "soft", "key": "soft@matched"}
        gap = {"mean": base + 0.5, "low": base + 0.1, "high": base + 0.9, "smallest": 0.2}
        soft["differences"] = {key: {"1": gap} for key in ("base@matched", "base@best")}
        found = verdict([*rows[:-1], soft], 60)
        assert found["verdict"] == kind
        assert found["sentence"].startswith(words)


def test_the_best_decoding_is_that_of_all_seeds_and_ties_go_to_the_first() -> None:
    tried = {T6: [report([4, 0]), report([0, 0])], T11: [report([2, 0]), report([2, 2])]}
    assert best_decoding(tried) == T11
    assert best_decoding({T6: [report([2, 2])], T11: [report([4, 0])]}) == T6


def result_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"name": "starter<b>", "count": 60, "sha256": "0" * 64, "golden": "all pass"}
    return {
        **verdict(rows, 60),
        "sets": {"dev": about, "test": about},
        "n": 4,
        "grader": "bubblewrap",
        "rows": rows,
        "extra": {},
        "left_out": {"grpo-0": "all <rewards> were equal"},
        "tried": {"base": [{"decoding": T6.model_dump(), "pass_at_1": [0.25, 0.5]}]},
    }


def test_page_and_table_hold_every_row_and_the_verdict() -> None:
    rows = rows_of([drawn(0.5, 3), drawn(0.5, 4)], drawn(0.4, 1), drawn(0.4, 2))
    result = result_of(rows)
    page, table = render(recipe(), result), terminal_table(result)
    for row in rows:
        assert row["label"] in page
        assert row["label"] in table
    assert result["sentence"] in table
    assert "starter&lt;b&gt;" in page
    assert "<b>" not in page
    assert "base at its best" in page
    assert "grpo-0 is left out: all &lt;rewards&gt; were equal." in page
    assert "grpo-0 is left out" in table
    assert "25.0, 50.0" in page
    assert "<script" not in page


# -- on disk ---------------------------------------------------------------------------------------------------------


def test_a_comparison_of_another_recipe_is_refused_and_further_sets_are_not(tmp_path: Path) -> None:
    ComparisonFolder.create(tmp_path / "c", recipe())
    with pytest.raises(UserError, match=r"compare\.dev_n: 3 → 2"):
        ComparisonFolder.create(tmp_path / "c", recipe("compare.dev_n=2"))
    ComparisonFolder.create(tmp_path / "c", recipe("compare.extra_sets=[humaneval]", "threads=2"))
    assert ComparisonFolder.open(tmp_path / "c").recipe.compare.extra_sets == ["humaneval"]
    with pytest.raises(UserError, match="is no comparison"):
        ComparisonFolder.open(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is there and is no comparison"):
        ComparisonFolder.create(tmp_path / "full", recipe())


def test_arms_that_grade_the_training_set_need_its_tests(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    lines = [{"id": f"p{n}", "prompt": f"Write f{n}."} for n in range(3)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="3 training problems have no tests, which rft needs"):
        prepare(tmp_path / "c", recipe(f"problems.train={tmp_path / 'set.jsonl'}", "problems.train_limit=null"))
    assert not (tmp_path / "c").exists()


def test_samples_are_shared_where_they_would_be_the_same(tmp_path: Path) -> None:
    folder = ComparisonFolder.create(tmp_path / "c", recipe())
    runs = {trained.arm: folder.run(trained) for trained in trained_runs(folder.recipe)}
    ssd, soft, null = runs["ssd"], runs["soft"], runs["null_arm"]
    ssd.samples.write_text("samples\n")
    share_samples(soft, [ssd])
    assert not soft.samples.exists(), "not before they are all there"
    ssd.targets.parent.mkdir()
    ssd.targets.write_bytes(b"laws")
    ssd.finish("sample", {"samples": 1}, 1.0)
    share_samples(soft, [null, ssd])
    share_samples(null, [ssd])
    assert (soft.samples.read_text(), soft.targets.read_bytes()) == ("samples\n", b"laws")
    assert soft.manifest()["samples_of"] == "ssd-0"
    assert not null.samples.exists()
    soft.samples.write_text("mine\n")
    share_samples(soft, [ssd])
    assert soft.samples.read_text() == "mine\n"


def test_dev_and_test_are_the_two_parts_of_the_evaluation_set() -> None:
    chosen = recipe("compare.limit=40")
    dev, about = problems_of(chosen, "dev")
    test, _ = problems_of(chosen, "test")
    assert (len(dev), len(test)) == (15, 25)
    assert (about["split"], about["count"]) == ("dev", 15)
    assert not {p.id for p in dev} & {p.id for p in test}


# -- a whole one -----------------------------------------------------------------------------------------------------

SMALL = (
    "threads=1",
    "model.gguf_type=f16",
    "problems.train_limit=4",
    "sample.max_new_tokens=8",
    "curate.cut_off=keep",
    "curate.drop_stubs=false",
    "train.gradient_accumulation_steps=1",
    "train.max_length=600",
    "evaluate.n=1",
    "evaluate.k=[1]",
    "evaluate.max_new_tokens=8",
    "compare.limit=12",
    "compare.dev_n=1",
    "compare.grid={temperature: [0.6], top_p: [0.8], min_p: [0.0]}",
    "compare.arms=[ssd,soft,rft]",
    "compare.best=[]",
)


def command(out: Path, model: Path, *more: str) -> list[str]:
    settings = [part for setting in (*SMALL, f"model.name={model}", *more) for part in ("--set", setting)]
    return [sys.executable, "-m", "ssd_lite", "compare", "quickstart", "--out", str(out), *settings]


@pytest.mark.slow
def test_a_whole_comparison_killed_twice_and_gone_on_with(tmp_path: Path) -> None:
    packaged_source()
    model = save_tiny(tmp_path / "tiny", "llama")
    environment = {**os.environ, "SSD_LITE_CACHE": str(shared_cache())}
    out = tmp_path / "c"
    for landmark in (out / "runs" / "ssd-0" / "adapter", out / "arms" / "base--T0.6-k20-p0.8-m0.0--dev"):
        process = subprocess.Popen(command(out, model), env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not landmark.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until_free(out)
    done = subprocess.run(command(out, model), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result: Mapping[str, Any] = json.loads((out / "comparison.json").read_text())
    assert [row["key"] for row in result["rows"]] == [
        "base@matched", "base@training", "base@best", "ssd@matched", "soft@matched",
    ]  # fmt: skip
    assert result["sentence"] in done.stdout
    # A model of random weights writes no correct program: that arm is left out and said, and the others are compared.
    assert list(result["left_out"]) == ["rft-0"]
    assert "rft-0 is left out: 0 of 4 samples left" in done.stdout
    assert (out / "comparison.html").read_text().count("<h2>") >= 5
    for about in result["sets"].values():
        assert "have a golden solution, and each passes" in about["golden"]
    for row in result["rows"]:
        assert (row["rows"], row["steps"]) == (([], []) if row["model"] == "base" else ([4], [1]))
    soft = json.loads((out / "runs" / "soft-0" / "manifest.json").read_text())
    assert soft["samples_of"] == "ssd-0"
    metrics = [json.loads(line) for line in (out / "runs" / "soft-0" / "metrics.jsonl").read_text().splitlines()]
    for step in metrics:
        assert step["loss"] == pytest.approx(step["expected_loss"], rel=1e-4)
    again = subprocess.run(command(out, model), env=environment, capture_output=True, text=True, timeout=100)
    assert "[1/4]" not in again.stdout
    assert result["sentence"] in again.stdout
    noted = json.loads((out / "made_with.json").read_text())
    (out / "made_with.json").write_text(json.dumps({**noted, "engine": "hf"}))
    other = subprocess.run(command(out, model), env=environment, capture_output=True, text=True, timeout=100)
    assert other.returncode == 2
    assert "engine of evaluation: hf → llama_cpp" in other.stderr
    shutil.rmtree(out)  # some 100 MB, made here
