"""train.engine: which library builds the trained model, and why; explicit wishes are refused rather than bent."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ssd_lite.engines.training.engine_choice import UNSLOTH, Machine, choose_engine
from ssd_lite.errors import UserError
from ssd_lite.recipe import Train
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.train import choose

CARD = Machine(cuda=True, bf16=True, unsloth=UNSLOTH, unsloth_zoo=UNSLOTH)
OBSTACLES = [
    (Train(), replace(CARD, cuda=False, bf16=False), "no CUDA card"),
    (Train(), replace(CARD, bf16=False), "no bfloat16"),
    (Train(), replace(CARD, processes=2), "2 processes"),
    (Train(), replace(CARD, unsloth=None), "unsloth is not installed"),
    (Train(), replace(CARD, unsloth_zoo=None), "unsloth_zoo is not installed"),
    (Train(), replace(CARD, unsloth="2025.9.5"), "2025.9.5 is installed"),
    (Train(method="full"), CARD, "full fine-tuning"),
]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_auto_takes_unsloth_where_it_can(method: str) -> None:
    chosen = choose_engine(Train.model_validate({"method": method}), CARD)
    assert chosen.engine == "unsloth"
    assert UNSLOTH in chosen.reason


@pytest.mark.parametrize(("settings", "machine", "words"), OBSTACLES)
def test_auto_says_why_it_takes_peft(settings: Train, machine: Machine, words: str) -> None:
    chosen = choose_engine(settings, machine)
    assert chosen.engine == "peft"
    assert words in chosen.reason


@pytest.mark.parametrize(("settings", "machine", "words"), OBSTACLES)
def test_unsloth_asked_for_and_not_to_be_had_is_an_error_that_says_what_to_do(
    settings: Train, machine: Machine, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        choose_engine(settings.model_copy(update={"engine": "unsloth"}), machine)
    assert "peft" in caught.value.next_step
    if "installed" in words:
        assert "ssd-lite[unsloth]" in caught.value.next_step


def test_a_wish_is_kept() -> None:
    assert choose_engine(Train(engine="peft"), CARD).engine == "peft"
    assert choose_engine(Train(engine="unsloth"), CARD).engine == "unsloth"


@pytest.mark.parametrize("begun_with", ["peft", "unsloth"])
def test_a_training_goes_on_with_the_engine_of_its_checkpoints(
    begun_with: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` would take the other one by now: Unsloth was installed meanwhile, or is gone."""
    prepared: list[Path] = []
    monkeypatch.setattr("ssd_lite.engines.training.unsloth_model.prepare", prepared.append)
    now = CARD if begun_with == "peft" else replace(CARD, unsloth=None)
    monkeypatch.setattr(Machine, "here", lambda: now)
    run = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    run.note("train_engine", begun_with)
    other = "unsloth" if begun_with == "peft" else "peft"
    assert choose(run).engine == other, "nothing is there yet that binds it"
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    if begun_with == "peft":
        chosen = choose(run)
        assert (chosen.engine, chosen.reason) == ("peft", "this training was begun with it")
    else:
        with pytest.raises(UserError, match="unsloth is not installed"):
            choose(run)


def test_this_machine_is_read_without_importing_unsloth() -> None:
    import sys

    pytest.importorskip("torch")
    Machine.here()
    assert "unsloth" not in sys.modules


def test_the_extra_pins_the_version_that_is_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]["unsloth"]
    assert {f"unsloth=={UNSLOTH}", f"unsloth_zoo=={UNSLOTH}"} <= set(extra)
