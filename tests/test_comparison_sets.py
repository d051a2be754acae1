"""Every set of a comparison is looked at before anything is trained: split, further sets, overlap, tests, solutions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import UserError
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import load_recipe
from ssd_lite.stages.answers import take
from ssd_lite.stages.compare import prepare
from ssd_lite.stages.comparison.plan import trained_runs
from ssd_lite.stages.comparison.sets import check_sets, check_solutions

WRONG = "def double(x):\n    return x\n"


def question(n: int, **more: Any) -> dict[str, Any]:
    return {"id": f"q{n}", "prompt": f"What is {n} plus {n}?", "tests": {"kind": "answer", "answer": str(2 * n)}} | more


def program(golden: str) -> dict[str, Any]:
    tests = {"kind": "functional", "entry_point": "double", "cases": [[[2], 4]]}
    return {"id": "p", "prompt": "Write double(x).", "tests": tests, "golden": golden}


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with ten questions to evaluate on and four to train on."""
    write(tmp_path / "eval.jsonl", [question(n) for n in range(10)])
    write(tmp_path / "train.jsonl", [question(n) for n in range(100, 104)])
    return tmp_path


def recipe_in(place: Path, *settings: str) -> Recipe:
    named = (f"problems.train={place / 'train.jsonl'}", f"problems.evaluate={place / 'eval.jsonl'}")
    return load_recipe("quickstart", [*named, "problems.train_limit=null", "compare.arms=[ssd]", *settings])


def check(recipe: Recipe) -> None:
    check_sets(recipe, trained_runs(recipe))


def test_sets_that_fit_pass(place: Path) -> None:
    extra = write(place / "extra.jsonl", [question(50)])
    check(recipe_in(place, "compare.arms=[ssd,rft]", f"compare.extra_sets=[{extra}]"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["compare.extra_sets=[no_such_set]"], "unknown problem set 'no_such_set'"),
        (["compare.extra_sets=[/nowhere/x.jsonl]"], r"/nowhere/x\.jsonl"),
        (["compare.dev_share=0.01"], "cannot be split into dev and test"),
        (["compare.limit=1"], "cannot be split into dev and test"),
    ],
)
def test_a_set_that_could_not_be_evaluated_is_refused_before_anything_is_written(
    place: Path, settings: list[str], words: str
) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UserError, match=words):
        prepare(place / "c", recipe_in(place, *settings))
    assert not (place / "c").exists()


def test_no_prompt_is_trained_on_and_evaluated_in_any_set(place: Path) -> None:
    extra = write(place / "extra.jsonl", [question(50), question(101)])
    guard = f"evaluate.guard=[{{problems: {extra}}}]"
    with pytest.raises(UserError, match=r"1 of 4 training prompts are in .*extra\.jsonl, on which arms.*: q101\."):
        check(recipe_in(place, f"compare.extra_sets=[{extra}]"))
    with pytest.raises(UserError, match="1 of 4 training prompts"):
        check(recipe_in(place, guard))
    write(place / "train.jsonl", [question(100), question(3)])
    with pytest.raises(UserError, match=r"1 of 2 training prompts are in .*eval\.jsonl"):
        check(recipe_in(place))


def test_a_variant_with_a_training_set_of_its_own_is_held_to_it_too(place: Path) -> None:
    other = write(place / "other.jsonl", [question(4)])
    with pytest.raises(UserError, match=r"1 of 1 training prompts are in .*eval\.jsonl"):
        check(recipe_in(place, f"compare.variants={{mine: [problems.train={other}]}}"))


def test_a_further_set_is_looked_at_when_it_is_added(place: Path) -> None:
    pytest.importorskip("torch")
    prepare(place / "c", recipe_in(place))
    before = (place / "c" / "compare.yaml").read_bytes()
    trained_on = write(place / "extra.jsonl", [question(101)])
    with pytest.raises(UserError, match="1 of 4 training prompts"):
        prepare(place / "c", recipe_in(place, f"compare.extra_sets=[{trained_on}]"))
    assert (place / "c" / "compare.yaml").read_bytes() == before
    fine = write(place / "fine.jsonl", [question(50)])
    assert prepare(place / "c", recipe_in(place, f"compare.extra_sets=[{fine}]")).recipe.compare.extra_sets


def test_solutions_are_graded_before_a_set_is_bound(place: Path) -> None:
    extra = write(place / "extra.jsonl", [program(WRONG)])
    recipe = recipe_in(place, f"compare.extra_sets=[{extra}]", "evaluate.sandbox=none")
    with pytest.raises(UserError, match="1 of 1 golden solutions fail their own tests"):
        check_solutions(recipe, ["dev", str(extra)])
    check_solutions(recipe, ["dev", "test"])
    write(extra, [program(WRONG.replace("return x", "return 2 * x"))])
    check_solutions(recipe, ["dev", str(extra)])
    pytest.importorskip("torch")
    write(extra, [program(WRONG)])
    with pytest.raises(UserError, match="golden solutions fail"):
        prepare(place / "c", recipe)
    assert not (place / "c").exists()


def test_tests_are_looked_for_in_the_problems_that_each_seed_draws(place: Path) -> None:
    lines = [question(n) if n % 2 else {"id": f"q{n}", "prompt": f"Say {n}."} for n in range(100, 108)]
    half = load_problems(str(write(place / "train.jsonl", lines)), role="train").problems
    tested = {seed: all(p.test is not None for p in take(half, 2, seed)) for seed in range(40)}
    with_tests, without = (next(s for s, whole in tested.items() if whole is wanted) for wanted in (True, False))
    arms = ("problems.train_limit=2", "compare.arms=[ssd,rft]")
    check(recipe_in(place, *arms, f"sample.seed={without}", f"compare.seeds=[{with_tests}]"))
    with pytest.raises(UserError, match="training problems have no tests, which rft needs"):
        check(recipe_in(place, *arms, f"sample.seed={with_tests}", f"compare.seeds=[{with_tests},{without}]"))
    variant = "compare.variants={clean: [curate.only_correct=true]}"
    with pytest.raises(UserError, match="which clean needs"):
        check(recipe_in(place, "problems.train_limit=2", variant, f"compare.seeds=[{without}]"))
