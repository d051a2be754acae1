"""The stage that plans: a recipe, or a run that has begun, on a machine; reads headers and configs, never weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ssd_lite.engines.ollama_store import PREFIX as OLLAMA
from ssd_lite.engines.ollama_store import ollama_gguf
from ssd_lite.errors import UserError
from ssd_lite.plan.advice import Changes, larger_batches, make_it_fit
from ssd_lite.plan.cards import CPU, Machine, cards, machine
from ssd_lite.plan.estimate import Limits, Model, Plan
from ssd_lite.plan.estimate import plan as estimate
from ssd_lite.plan.prompt_sets import prompts_of
from ssd_lite.plan.shapes import from_config, packaged_shape, packaged_shapes
from ssd_lite.plan.work import Load, dropped_rows
from ssd_lite.problems import livecodebench, livecodebench_name
from ssd_lite.problems.problem_set import existing_path
from ssd_lite.recipe import Recipe
from ssd_lite.user_path import user_path

# Sets that are known by name, and those whose name goes before a file (problems/named.py).
_SETS, _FILE_SETS = ("starter", "humaneval", "mbpp", "rstar-coder"), ("evalplus", "questions")
WORDS = "by arithmetic, not measured on a GPU"


@dataclass(frozen=True)
class Question:
    """What is asked beside the recipe: card, money an hour, mean completion in tokens, memory and disk of the host."""

    gpu: str | None = None
    price: float | None = None
    mean_tokens: int | None = None
    ram_gb: float | None = None
    disk_gb: float | None = None


@dataclass(frozen=True)
class Answered:
    """A plan, the changes that make it fit (None where none do), the same on every card, and what was guessed.

    `room` holds the larger batches that would fit too.
    """

    plan: Plan
    price: float | None
    changes: Changes | None
    room: Changes
    others: dict[str, Plan]
    notes: tuple[str, ...]


def plan(recipe: Recipe, question: Question) -> Answered:
    """Plan a recipe. Raises UserError for an unknown card, and for a model whose shape cannot be found."""
    return answer(recipe, find_model(recipe), load_of(recipe, question.mean_tokens), question)


def answer(recipe: Recipe, found: tuple[Model, str], load: Load, question: Question) -> Answered:
    """The plan of a recipe whose model and prompts are known."""
    if recipe.train.grpo is not None:
        raise UserError(
            "is not planned: it draws completions while it trains.",
            where="train.grpo",
            next_step="Measure some steps: --set train.max_steps=3",
        )
    model, note = found
    on = machine(question.gpu)
    limits = _limits(on, question)

    def again(other: Recipe) -> Plan:
        return estimate(other, model, load, on, limits)

    made = again(recipe)
    fitting, changes = make_it_fit(made, again)
    others = {card.key: estimate(recipe, model, load, card, _limits(card, question)) for card in cards().values()}
    notes = [note, load.train.note, load.evaluate.note, dropped_rows((fitting or made).recipe, load)]
    if recipe.evaluate.guard:
        notes.append("guard sets are not counted")
    if recipe.rounds > 1:
        notes.append(
            f"all {recipe.rounds} rounds are counted, but not the export of the best one; they may stop before"
        )
    room = larger_batches(made, again)
    return Answered(made, question.price, changes if fitting else None, room, others, tuple(filter(None, notes)))


def _limits(on: Machine, question: Question) -> Limits:
    """What the user names; without a card it is this machine's memory, where it can be asked for."""
    ram = None if question.ram_gb is None else int(question.ram_gb * 1e9)
    if ram is None and on is CPU and hasattr(os, "sysconf"):
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Limits(ram, None if question.disk_gb is None else int(question.disk_gb * 1e9))


def find_model(recipe: Recipe) -> tuple[Model, str]:
    """The base's shape, and a line on where it is from: packaged, a folder's or a GGUF's header, the Hub."""
    name = recipe.model.name
    shape = packaged_shape(name)
    if shape is not None:
        return Model(name, shape, packaged_shapes()[name]["kind"]), ""
    path = ollama_gguf(name, "model.name") if name.startswith(OLLAMA) else user_path(name, "model.name")
    if path.is_dir():
        return _folder_model(name, path)
    if path.is_file():
        from ssd_lite.engines.gguf.read import FLOAT32_LIMIT, open_gguf
        from ssd_lite.engines.gguf.settings import config_from_metadata

        gguf = open_gguf(path)
        try:
            config = config_from_metadata(gguf.architecture, gguf.fields, set(gguf.tensors))
            config["vocab_size"] = int(gguf.tensors["token_embd.weight"].shape[1])
        except KeyError as error:
            raise UserError(
                f"is no whole model: it says nothing of {error}.",
                where=str(path),
                next_step="Name a model's GGUF, not an adapter's or a matrix's.",
            ) from error
        config["torch_dtype"] = "float32" if gguf.parameter_count <= FLOAT32_LIMIT else "bfloat16"
        return Model(name, from_config(config, str(path)), "gguf"), "shape from the header of the GGUF"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"no packaged model, folder or file {path.absolute()}.",
            where="model.name",
            next_step="Name a folder with config.json, a GGUF file or a Hub id (owner/name).",
        )
    from ssd_lite.engines.weights.hub_shape import config_from_hub

    config, count = config_from_hub(name, recipe.model.revision)
    model = Model(name, from_config(config, name), "hub")
    return model, _compared(model, count, "shape from the Hub")


def _folder_model(name: str, path: Path) -> tuple[Model, str]:
    """A folder with config.json; where the weights lie there too, their headers are compared with it."""
    from ssd_lite.engines.weights.model_folder import read_json, weight_files
    from ssd_lite.engines.weights.safetensors_file import SafetensorsFile

    model = Model(name, from_config(read_json(path / "config.json"), str(path / "config.json")), "folder")
    headers = [SafetensorsFile(file) for file in weight_files(path)]
    count = sum(info.count for header in headers for info in header.tensors.values())
    return model, _compared(model, count or None, "shape from the folder's config.json")


def _compared(model: Model, count: int | None, where: str) -> str:
    shaped = model.shape.parameters
    if count is None or abs(count - shaped) <= 0.01 * count:
        return where
    return f"{where}: it makes {shaped:,} weights, the files hold {count:,}, so take the plan with care"


def load_of(recipe: Recipe, mean_tokens: int | None) -> Load:
    """The prompts of the recipe's sets; lines of local files are counted, others come from a table.

    Raises UserError for a file that is not there or empty, and for a name that is no set.
    """
    problems = recipe.problems
    return Load(
        prompts_of(problems.train, "train", problems.train_limit, _lines(problems.train)),
        prompts_of(problems.evaluate, "evaluate", problems.evaluate_limit, _lines(problems.evaluate)),
        mean_tokens,
    )


def _lines(name: str) -> int | None:
    head, _, rest = name.partition(":")
    if head in _SETS and not rest.endswith(".jsonl"):
        return None
    if head == "livecodebench" and rest:
        asked = livecodebench_name.parse(rest, Path.cwd())
        return livecodebench.count(existing_path(Path(asked.place)), asked)
    text = rest if head in _SETS else rest.partition(":")[0] if head in _FILE_SETS else name
    path = Path(text)  # the stages that read it expand no `~` either
    if not os.path.exists(path):  # unlike Path.exists it takes a name that is too long
        raise UserError(
            f"there is no problem set of this name, and no file {path.absolute()}.",
            where=name,
            next_step="Check the path, or name a set (docs/problems.md).",
        )
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as file:
        count = sum(bool(line.strip()) for line in file)
    if not count:
        raise UserError("holds no problem.", where=name, next_step="Give a set with at least one problem.")
    return count
