"""The recipes that ship: they load, are sparse, carry the paper's settings and do not claim what nobody measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import load_recipe, packaged_recipes
from ssd_lite.recipe_section import Decoding

RECIPES = packaged_recipes()
FOR_CARDS = [name for name in RECIPES if name.endswith("gb")]
# (temperature, top_k, top_p; top_k 0 = off): sample, evaluate tuned, evaluate base. arXiv 2604.01193.
PRESETS = {
    "llama-3.1-8b-instruct-qlora-24gb": ((0.8, 20, 0.8), (0.7, 20, 0.8), (0.9, 0, 0.8)),
    "qwen3-4b-instruct-qlora-24gb": ((1.6, 20, 0.8), (1.1, 20, 0.8), (0.7, 20, 0.8)),
    "qwen3-4b-instruct-vllm-qlora-24gb": ((1.6, 20, 0.8), (1.1, 20, 0.8), (0.7, 20, 0.8)),
    "qwen3-4b-thinking-qlora-24gb": ((1.1, 20, 0.95), (0.7, 20, 0.95), (0.6, 20, 0.95)),
    # Not in the paper: borrowed from Qwen3-4B-Thinking-2507, and the file must say so.
    "qwen3-8b-qlora-24gb": ((1.1, 20, 0.95), (0.7, 20, 0.95), (0.6, 20, 0.95)),
}
# Rate as a share of its peak at the end, AdamW's moments and decay: alike for every model there. Its warm-up is 250 of
# 2,500 steps for the instruct models and 50 of 300 for the thinking ones; 32 samples a step; one sample a prompt.
TRAINING = {
    "train.min_lr_rate": 1e-6 / 5e-6,
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.95,
    "train.weight_decay": 0.1,
    "sample.n": 1,
    "curate.only_correct": False,
    "train.target": "sampled",
    "train.grpo": None,
    "sample.teacher": None,
    "sample.null_arm": False,
}
INSTRUCT, THINKING = (250, 2500), (50, 300)
WARM_UP = {
    "llama-3.1-8b-instruct-qlora-24gb": INSTRUCT,
    "qwen3-4b-instruct-qlora-24gb": INSTRUCT,
    "qwen3-4b-instruct-vllm-qlora-24gb": INSTRUCT,
    "qwen3-4b-thinking-qlora-24gb": THINKING,
    "qwen3-8b-qlora-24gb": THINKING,
}
MODELS = {
    "llama-3.1-8b-instruct-qlora-24gb": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen3-4b-instruct-qlora-24gb": "Qwen/Qwen3-4B-Instruct-2507",
    "qwen3-4b-instruct-vllm-qlora-24gb": "Qwen/Qwen3-4B-Instruct-2507",
    "qwen3-4b-thinking-qlora-24gb": "Qwen/Qwen3-4B-Thinking-2507",
    "qwen3-8b-qlora-24gb": "Qwen/Qwen3-8B",
}


def law(decoding: Decoding) -> tuple[float, int, float]:
    return decoding.temperature, decoding.top_k, decoding.top_p


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return found


def test_the_promised_recipes_are_there() -> None:
    assert set(RECIPES) >= {"quickstart", *PRESETS}
    assert sorted(FOR_CARDS) == sorted(PRESETS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    first = RECIPES[name].splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"ssd-lite run {name}")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_writes_only_what_differs_from_the_defaults(name: str) -> None:
    written = flat(yaml.safe_load(RECIPES[name]))
    default = flat(Recipe.model_validate({"name": "x", "model": {"name": "-"}}).model_dump())
    assert [key for key, value in written.items() if key in default and default[key] == value] == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_card_recipe_has_the_settings_of_the_paper(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.name == MODELS[name]
    assert (law(recipe.sample), law(recipe.evaluate.tuned), law(recipe.evaluate.base)) == PRESETS[name]
    assert recipe.train.method == "qlora"
    assert recipe.problems.train == "rstar-coder"
    assert recipe.train.max_length >= recipe.sample.max_new_tokens


@pytest.mark.parametrize("name", FOR_CARDS)
def test_a_card_recipe_trains_as_the_paper_did(name: str) -> None:
    """Steps of the paper's size and with its course of the rate; the rate's peak is LoRA's own and no preset."""
    recipe = load_recipe(name)
    settings, (rising, steps) = flat(recipe.model_dump()), WARM_UP[name]
    assert {key: settings[key] for key in TRAINING} == pytest.approx(TRAINING)
    assert recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps == 32
    assert math.ceil(recipe.train.warmup_ratio * steps) == rising
    for decoding in (recipe.sample, recipe.evaluate.base, recipe.evaluate.tuned):
        assert decoding.min_p == 0.0


@pytest.mark.parametrize("name", FOR_CARDS)
def test_a_card_recipe_says_that_it_was_not_measured(name: str) -> None:
    assert "# GPU: not measured" in RECIPES[name]
    assert "not measured" in load_recipe(name).description


def test_the_recipe_for_a_model_outside_the_paper_says_so() -> None:
    assert "not in the paper" in RECIPES["qwen3-8b-qlora-24gb"]


@pytest.mark.parametrize("name", FOR_CARDS)
def test_each_unusual_value_has_its_reason(name: str) -> None:
    """Of the keys that no table or name explains, each line carries a comment."""
    lines = RECIPES[name].splitlines()
    keys = ("batch_size:", "max_new_tokens:", "max_length:", "warmup_ratio:", "optim:")
    assert [line for line in lines if any(k in line for k in keys) and "#" not in line] == []
