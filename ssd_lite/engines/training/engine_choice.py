"""Which library builds the trained model: Unsloth on a CUDA card where its pinned version is installed, else PEFT.

Imports no heavy library but torch, and that only to ask for a card: Unsloth must be imported before transformers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from ssd_lite.errors import UserError
from ssd_lite.recipe import Train

Engine = Literal["unsloth", "peft"]
# The version this project's calls and proofs were written for (docs/unsloth.md); the extra `unsloth` pins the same.
UNSLOTH = "2026.10.7"
INSTALL = 'Type: pip install "ssd-lite[unsloth]"'


@dataclass(frozen=True)
class Machine:
    """What the choice stands on: the card, the versions that are installed (None: not at all), the processes."""

    cuda: bool
    bf16: bool
    unsloth: str | None
    unsloth_zoo: str | None
    processes: int = 1

    @classmethod
    def here(cls) -> Machine:
        """This machine, without importing Unsloth."""
        import torch

        cuda = torch.cuda.is_available()
        return cls(
            cuda,
            cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            _installed("unsloth"),
            _installed("unsloth_zoo"),
            int(os.environ.get("WORLD_SIZE", "1")),
        )


@dataclass(frozen=True)
class Choice:
    """The engine, and the reason in words that follow its name."""

    engine: Engine
    reason: str


def choose_engine(settings: Train, machine: Machine) -> Choice:
    """What `train.engine` means on this machine. Raises UserError where unsloth is asked for and cannot be had."""
    if settings.engine == "peft":
        return Choice("peft", "the recipe asks for it")
    obstacle = _obstacle(settings, machine)
    if settings.engine == "unsloth":
        if obstacle is not None:
            what, next_step = obstacle
            raise UserError(f"unsloth cannot train this here: {what}.", where="train.engine", next_step=next_step)
        return Choice("unsloth", "the recipe asks for it")
    if obstacle is not None:
        return Choice("peft", obstacle[0])
    return Choice("unsloth", f"a CUDA card, and Unsloth {UNSLOTH} is installed")


def _obstacle(settings: Train, machine: Machine) -> tuple[str, str] | None:
    """Why Unsloth cannot be taken, and what would help; None where it can."""
    other = "Or set train.engine: peft."
    if settings.method == "full":
        return "full fine-tuning is done without adapters", "Set train.engine: peft, or train.method: lora or qlora."
    if not machine.cuda:
        return "there is no CUDA card", other
    if not machine.bf16:
        return "the card has no bfloat16, which training counts in", other
    if machine.processes > 1:
        return f"there are {machine.processes} processes, and it trains on one card", other
    found = {"unsloth": machine.unsloth, "unsloth_zoo": machine.unsloth_zoo}
    for name, installed in found.items():
        if installed is None:
            return f"{name} is not installed", f"{INSTALL}. {other}"
        if installed != UNSLOTH:
            return f"{name} {installed} is installed, and {UNSLOTH} is what was checked", f"{INSTALL}. {other}"
    return None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
