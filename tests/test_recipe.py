"""The knobs: what is out of range is refused, types are not guessed, and the defaults are the paper's."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ssd_lite.recipe import Recipe


def make(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "model": {"name": "m"}, **sections})


REFUSED = [
    ("sample", {"temperature": 0.0}),
    ("sample", {"temperature": -1.0}),
    ("sample", {"temperature": float("nan")}),
    ("sample", {"temperature": float("inf")}),
    ("sample", {"temperature": "0.7"}),
    ("sample", {"temperature": True}),
    ("sample", {"top_p": 0.0}),
    ("sample", {"top_p": 1.01}),
    ("sample", {"top_k": -1}),
    ("sample", {"top_k": 20.0}),
    ("sample", {"n": 0}),
    ("sample", {"max_new_tokens": 0}),
    ("sample", {"batch_size": 0}),
    ("sample", {"seed": -1}),
    ("sample", {"seed": 2**63}),
    ("sample", {"engine": "vllm"}),
    ("sample", {"temprature": 1.0}),
    ("curate", {"cut_off": "no"}),
    ("curate", {"cut_off": False}),
    ("curate", {"shortest_percent": 100.0}),
    ("train", {"learning_rate": 0.0}),
    ("train", {"learning_rate": "2e-4"}),
    ("train", {"warmup_ratio": 1.0}),
    ("train", {"min_lr_rate": 1.1}),
    ("train", {"lora_r": 0}),
    ("train", {"max_steps": 0}),
    ("train", {"num_train_epochs": 0}),
    ("train", {"adam_beta2": 1.0}),
    ("train", {"method": "dora"}),
    ("train", {"lora_target_modules": "q_proj"}),
    ("train", {"report_to": ["mlflow"]}),
    ("merge", {"dtype": "int8"}),
    ("evaluate", {"n": 4}),
    ("evaluate", {"n": 10, "k": [11]}),
    ("evaluate", {"k": [0]}),
    ("evaluate", {"base": {"top_k": 20}}),
    ("evaluate", {"sandbox": "docker"}),
    ("export", {"types": ["q4"]}),
    ("evaluate", {"k": []}),
    ("report", {"pairs": 51}),
    ("problems", {"train_limit": 0}),
    ("model", {"name": ""}),
    ("model", {}),
    ("trian", {}),
]


@pytest.mark.parametrize(("section", "value"), REFUSED, ids=lambda value: str(value))
def test_refused(section: str, value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**{section: value})
    assert caught.value.errors()[0]["loc"][0] == section


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "a\nb"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        make(name=name)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("sample", {"temperature": 1}),
        ("sample", {"top_k": 0, "top_p": 1.0}),
        ("sample", {"top_p": 1}),
        ("sample", {"seed": 2**63 - 1}),
        ("train", {"lora_target_modules": ["q_proj", "v_proj"]}),
        ("train", {"max_steps": None}),
        ("evaluate", {"n": 1, "k": [1]}),
        ("evaluate", {"base": {"temperature": 0.9, "top_k": 0}}),
        ("report", {"pairs": 0}),
    ],
)
def test_accepted(section: str, value: dict[str, Any]) -> None:
    make(**{section: value})


def test_no_gradient_is_refused_unless_it_is_the_null_arm() -> None:
    null = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with pytest.raises(ValidationError, match="zero expected gradient"):
        make(sample=null)
    assert make(sample={**null, "null_arm": True}).sample.null_arm
    for change in ({"temperature": 1.2}, {"top_k": 20}, {"top_p": 0.9}):
        make(sample={**null, **change})


def test_the_defaults_are_the_papers_for_qwen3_4b_instruct() -> None:
    recipe = make()
    sample, train, evaluate = recipe.sample, recipe.train, recipe.evaluate
    assert (sample.temperature, sample.top_k, sample.top_p, sample.n) == (1.6, 20, 0.8, 1)
    assert (evaluate.base.temperature, evaluate.base.top_k, evaluate.base.top_p) == (0.7, 20, 0.8)
    assert (evaluate.tuned.temperature, evaluate.tuned.top_k, evaluate.tuned.top_p) == (1.1, 20, 0.8)
    assert (evaluate.n, evaluate.k) == (10, [1, 5])
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 32
    assert (train.adam_beta1, train.adam_beta2, train.weight_decay) == (0.9, 0.95, 0.1)
    assert (train.min_lr_rate * 5e-6, train.warmup_ratio * 2500) == (pytest.approx(1e-6), 250)


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError):
        make().sample.temperature = 2.0


@pytest.mark.parametrize(
    ("section", "value", "key"),
    [
        ("sample", {"teacher": "another"}, "sample.teacher"),
        ("curate", {"only_correct": True}, "curate.only_correct"),
    ],
)
def test_what_grpo_would_ignore_is_refused(section: str, value: dict[str, Any], key: str) -> None:
    body = {"name": "r", "model": {"name": "m"}, "train": {"grpo": {}}}
    Recipe.model_validate(body)
    with pytest.raises(ValueError, match=f"{key} would have no effect"):
        Recipe.model_validate({**body, section: value})
    with pytest.raises(ValueError, match=r"train\.target soft would have no effect"):
        Recipe.model_validate({**body, "train": {"grpo": {}, "target": "soft"}})
