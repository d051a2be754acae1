"""What to change so that a recipe fits: one key at a time, the mildest first, until nothing is left to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssd_lite.plan.estimate import Plan
from ssd_lite.recipe import Recipe

SHORTEST = 1024  # tokens; below it a recipe would not be the same work any more
Changes = dict[str, Any]


def make_it_fit(first: Plan, again: Callable[[Recipe], Plan]) -> tuple[Plan | None, Changes]:
    """A plan that fits and the keys it changes (`a.b` → value), or None and what was tried.

    `again` plans another recipe on the same machine. Nothing is proposed for the disk, the context or the host of a
    machine with a card: no key that changes them leaves the run what it is.
    """
    plan, changes = first, Changes()
    while not plan.fits:
        change = next((found for stage, _ in plan.reasons if (found := _mildest(plan.recipe, stage))), None)
        if change is None:
            return None, changes
        changes |= change
        plan = again(with_changes(plan.recipe, change))
    return plan, {key: value for key, value in changes.items() if _value(first.recipe, key) != value}


def larger_batches(plan: Plan, again: Callable[[Recipe], Plan]) -> Changes:
    """Batch sizes of sampling and evaluating that fit too, doubled as often as a card allows; empty without one.

    A step of decoding takes about as long for many completions as for few: an empty half of a card is paid for too.
    """
    found = Changes()
    stages = ("sample", "evaluate") if plan.machine.on_card and plan.fits else ()
    for stage in stages:
        part, work = getattr(plan.recipe, stage), plan.stages[stage]
        batch = part.batch_size
        if part.engine == "server":  # it queues what does not fit
            continue
        while 2 * batch <= work.completions and _fits_with(plan, again, f"{stage}.batch_size", 2 * batch):
            batch *= 2
        if batch > part.batch_size:
            found[f"{stage}.batch_size"] = batch
    return found


def _fits_with(plan: Plan, again: Callable[[Recipe], Plan], key: str, value: Any) -> bool:
    return again(with_changes(plan.recipe, {key: value})).fits


def with_changes(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with keys `section.key` set. Validated as any recipe is."""
    value = recipe.model_dump()
    for key, new in changes.items():
        section, name = key.split(".")
        value[section][name] = new
    return Recipe.model_validate(value)


def _value(recipe: Recipe, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def _mildest(recipe: Recipe, stage: str) -> Changes | None:
    match stage:
        case "train":
            return _for_training(recipe)
        case "sample" | "evaluate":
            return _for_decoding(recipe, stage)
        case _:
            return None


def _for_training(recipe: Recipe) -> Changes | None:
    train = recipe.train
    if not train.gradient_checkpointing:
        return {"train.gradient_checkpointing": True}
    if train.per_device_train_batch_size > 1:
        half = train.per_device_train_batch_size // 2
        step = train.per_device_train_batch_size * train.gradient_accumulation_steps
        return {"train.per_device_train_batch_size": half, "train.gradient_accumulation_steps": -(-step // half)}
    if "8bit" not in train.optim:
        return {"train.optim": "paged_adamw_8bit"}
    if train.method != "qlora":
        return {"train.method": "qlora"}
    if train.max_length > SHORTEST:
        return {"train.max_length": _shorter(train.max_length)}
    return None


def _for_decoding(recipe: Recipe, stage: str) -> Changes | None:
    part = recipe.sample if stage == "sample" else recipe.evaluate
    if part.batch_size > 1:
        return {f"{stage}.batch_size": part.batch_size // 2}
    if part.max_new_tokens > SHORTEST:
        return {f"{stage}.max_new_tokens": _shorter(part.max_new_tokens)}
    return None


def _shorter(tokens: int) -> int:
    """An eighth less, in whole 256s: half at once would drop more samples than need be."""
    return max(SHORTEST, tokens * 7 // 8 // 256 * 256)
