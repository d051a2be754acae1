"""Which stages a recipe has, and which of its settings the result of each stands on."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from ssd_lite.recipe import Recipe

Stage = Literal["sample", "curate", "train", "merge", "evaluate", "export", "report"]
# A stage stands on its own section and on those of the stages before it; top-level keys that no stage result depends on
# (name, description, threads) stand in none.
STAGE_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "sample": ("model", "problems", "sample"),
    "curate": ("model", "problems", "sample", "curate"),
    "train": ("model", "problems", "sample", "curate", "train"),
    "merge": ("model", "problems", "sample", "curate", "train", "merge"),
    "evaluate": ("model", "problems", "sample", "curate", "train", "merge", "evaluate"),
    "export": ("model", "problems", "sample", "curate", "train", "merge", "evaluate", "export"),
    "report": ("model", "problems", "sample", "curate", "train", "merge", "evaluate", "export", "report"),
}


# How a stage works and not what it makes: may change on the way, as where a card's memory was not enough.
_HOW = {
    "sample": ("batch_size",),
    "evaluate": ("batch_size",),
    "train": ("save_steps", "report_to", "gradient_checkpointing"),
}


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a run in their order. GRPO draws its own completions, so it needs neither sample nor curate."""
    skipped = () if recipe.train.grpo is None else ("sample", "curate")
    return tuple(stage for stage in STAGE_SECTIONS if stage not in skipped)


def settings_digest(recipe: Recipe, stage: Stage) -> str:
    """Digest of every setting that the result of this stage stands on."""
    settings = recipe.model_dump(mode="json", include=set(STAGE_SECTIONS[stage]))
    for section, keys in _HOW.items():
        for key in keys:
            settings.get(section, {}).pop(key, None)
    train = settings.get("train")
    if train is not None and recipe.train.grpo is None:  # micro-batches of a step may be cut otherwise
        train["batch"] = train.pop("per_device_train_batch_size") * train.pop("gradient_accumulation_steps")
    if recipe.train.grpo is not None and "train" in settings:
        settings["rewarded"] = recipe.evaluate.block  # which part of a completion GRPO's reward is for
    asked = [recipe.sample.engine, *([recipe.evaluate.engine] if "evaluate" in settings else [])]
    if "server" in asked:
        settings["server"] = recipe.server.command  # its flags may choose other numbers for the weights
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
