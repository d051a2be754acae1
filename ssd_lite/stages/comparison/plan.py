"""What a comparison is made of: the runs to train, the decodings to try, the split of the problems, and its arms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.grading.statistics import groups
from ssd_lite.recipe import Grpo, Recipe
from ssd_lite.recipe_file import override, validate
from ssd_lite.recipe_section import Decoding
from ssd_lite.recipe_stages import Stage
from ssd_lite.records import Problem

BASE = "base"
# Sections in which a variant may differ; all arms are evaluated alike.
_OF_VARIANTS = ("sample", "curate", "train", "merge")
_PER_SEED = ("sample.seed", "train.seed")
_NAME = re.compile(
    r"(?P<model>.+?)--T(?P<temperature>.+?)-k(?P<top_k>\d+)-p(?P<top_p>.+?)-m(?P<min_p>.+?)--(?P<problems>.+)"
)


@dataclass(frozen=True)
class TrainedRun:
    """One arm trained with one seed: an ordinary run with a recipe of its own."""

    arm: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What it needs before it can be evaluated; GRPO samples while it trains."""
        return ("sample", "curate", "train", "merge") if self.recipe.train.grpo is None else ("train", "merge")

    @property
    def is_graded(self) -> bool:
        """Does it learn from the tests of the training problems? Then there may be nothing to learn from."""
        return self.recipe.curate.only_correct or self.recipe.train.grpo is not None


def trained_runs(recipe: Recipe) -> list[TrainedRun]:
    """Every arm and variant with every seed, seed by seed. Raises UserError for an arm that lacks what it needs."""
    return [
        TrainedRun(arm, seed, _recipe_of(recipe, arm, seed))
        for seed in recipe.compare.seeds
        for arm in dict.fromkeys([*recipe.compare.arms, *recipe.compare.variants])
    ]


def _recipe_of(recipe: Recipe, arm: str, seed: int) -> Recipe:
    value = recipe.model_dump()
    value["name"] = f"{recipe.name}-{arm}-{seed}"
    value["sample"]["seed"] = value["train"]["seed"] = seed
    overrides = recipe.compare.variants.get(arm)
    _change(value, "ssd" if overrides is not None else arm, recipe)
    for setting in overrides or ():
        _need_effect(arm, setting, len(recipe.compare.seeds))
        override(value, setting)
    return validate(value, f"compare, arm {arm}")


def _need_effect(variant: str, setting: str, seeds: int) -> None:
    """Raise UserError for a setting that would change nothing, because arms are evaluated alike, or undo the seeds."""
    key = setting.partition("=")[0].strip()
    if key in _PER_SEED and seeds > 1:
        reason = "compare.seeds says it for every arm"
    elif key.partition(".")[0] in _OF_VARIANTS or key in ("problems.train", "problems.train_limit"):
        return
    else:
        reason = f"a variant may differ in {', '.join(_OF_VARIANTS)}, problems.train and problems.train_limit"
    raise UserError(
        f"the variant {variant} cannot have a {key} of its own: {reason}.",
        where="compare.variants",
        next_step="Leave it out there, or set it for the whole recipe.",
    )


def _change(value: dict[str, Any], arm: str, recipe: Recipe) -> None:
    """The one thing in which an arm differs from SSD."""
    value["train"]["target"], value["train"]["grpo"] = "sampled", None
    value["curate"]["only_correct"], value["sample"]["teacher"] = False, None
    match arm:
        case "ssd":
            pass
        case "soft":
            value["train"]["target"] = "soft"
        case "null_arm":
            law = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
            value["sample"] |= {**law, "null_arm": True, "targets": "drop"}
        case "rft":
            value["curate"]["only_correct"] = True
        case "distill":
            if recipe.compare.teacher is None:
                raise UserError(
                    "the arm distill needs a teacher.", where="compare.teacher", next_step="Name another model there."
                )
            value["sample"] |= {"teacher": recipe.compare.teacher, "targets": "drop"}
        case "grpo":
            value["train"]["grpo"] = (recipe.train.grpo or Grpo()).model_dump()
        case _:
            raise UserError(f"there is no arm {arm!r}.", where="compare.arms")


def training_decoding(recipe: Recipe) -> Decoding:
    """The law the training samples are drawn from."""
    sample = recipe.sample
    return Decoding(temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p, min_p=sample.min_p)


def candidates(recipe: Recipe) -> list[Decoding]:
    """Every decoding that is tried on the dev split, each once: those the recipe names first, then the grid."""
    grid = recipe.compare.grid
    named = [recipe.evaluate.base, recipe.evaluate.tuned, training_decoding(recipe)]
    crossed = itertools.product(grid.temperature, grid.top_p, grid.min_p)
    top_k = recipe.evaluate.base.top_k
    named += [Decoding(temperature=t, top_k=top_k, top_p=p, min_p=m) for t, p, m in crossed]
    return list(dict.fromkeys(named))


def split(problems: Sequence[Problem], dev_share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Dev and test problems in the order of the set: drawn with `seed`, tier by tier, so that both are as hard."""
    tiers = groups({problem.id: problem.difficulty for problem in problems})
    dev: set[str] = set()
    for tier, ids in tiers.items():
        dev.update(Random(f"{seed} {tier}").sample(ids, round(dev_share * len(ids))))
    parts = [p for p in problems if p.id in dev], [p for p in problems if p.id not in dev]
    if not all(parts):
        raise UserError(
            f"{len(problems)} problems cannot be split into dev and test with a share of {dev_share:g}.",
            where="compare.dev_share",
            next_step="Take a larger set, or another share.",
        )
    return parts


@dataclass(frozen=True)
class ArmOrder:
    """One arm to evaluate: a model ("base" or a trained run's name) under a decoding on a set (dev, test or a name)."""

    model: str
    decoding: Decoding
    problems: str

    @property
    def name(self) -> str:
        """The arm as a word, for its folder and for `--arm`; `read_order` reads it back."""
        law = self.decoding
        return f"{self.model}--T{law.temperature!r}-k{law.top_k}-p{law.top_p!r}-m{law.min_p!r}--{self.problems}"

    @property
    def folder_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.name)


def completions(recipe: Recipe, order: ArmOrder) -> int:
    """Completions a problem. On the dev split the base gets as many as an arm with all its seeds.

    Who chooses with more completions chooses better: with fewer, the base would lose by that alone.
    """
    settings = recipe.compare
    if order.problems == "dev":
        return settings.dev_n * (len(settings.seeds) if order.model == BASE else 1)
    return recipe.evaluate.n if order.problems == "test" else settings.extra_n


def read_order(name: str) -> ArmOrder:
    """The arm of a name that `ArmOrder.name` gave. Raises UserError for anything else."""
    found = _NAME.fullmatch(name)
    try:
        if found is None:
            raise ValueError("three parts with two dashes between")
        decoding = Decoding(
            temperature=float(found["temperature"]),
            top_k=int(found["top_k"]),
            top_p=float(found["top_p"]),
            min_p=float(found["min_p"]),
        )
    except ValueError as error:
        raise UserError(
            f"{name!r} names no arm.", where="--arm", next_step="Type for instance base--T0.6-k20-p0.8-m0.0--test."
        ) from error
    return ArmOrder(found["model"], decoding, found["problems"])
