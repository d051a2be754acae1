"""A recipe held against this machine: packages it cannot do without, and whether it fits by `plan`'s arithmetic."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ssd_lite.container import read_quota
from ssd_lite.errors import UserError
from ssd_lite.plan import cards as known
from ssd_lite.plan.estimate import Limits
from ssd_lite.plan.estimate import plan as estimate
from ssd_lite.recipe import Recipe
from ssd_lite.stages import plan
from ssd_lite.stages.checkup.cards import Cards
from ssd_lite.stages.checkup.finding import Finding, gib, needed
from ssd_lite.stages.recipe_needs import Need, needs, server_program

# What brings the program that server.command starts.
_SERVERS = {
    "uvx": "pip install uv  # it fetches vLLM into an environment of its own",
    "uv": "pip install uv",
    "vllm": "uv tool install vllm  # in an environment of its own: it pins a torch of its own (docs/server.md)",
}


def with_needs(findings: Iterable[Finding], recipe: Recipe, has_card: bool) -> list[Finding]:
    """The findings, where what is absent and cannot be done without stops the run; and what else the recipe needs."""
    wanted = {need.name: need for need in needs(recipe, has_card)}
    found = [needed(one, wanted[one.name].key) if one.name in wanted else one for one in findings]
    named = {one.name for one in found}
    others = [_installed(need) for need in wanted.values() if need.name not in named]
    return [*found, *others, *_server(recipe)]


def _server(recipe: Recipe) -> list[Finding]:
    program = server_program(recipe)
    if program is None:
        return []
    path = shutil.which(program)
    if path is None:
        advice = _SERVERS.get(Path(program).name, "look into docs/server.md")
        return [Finding("server", "fail", f"there is no program {program!r}", advice)]
    return [Finding("server", "ok", f"{path} is there; whether it starts was not tried")]


def _installed(need: Need) -> Finding:
    if need.missing is None:
        return Finding(need.name, "ok", f"installed; {need.key} needs it")
    why = f"{need.missing} is not installed; {need.key} needs it"
    return Finding(need.name, "fail", why, f'pip install "ssd-lite[{need.extra}]"')


def recipe_findings(recipe: Recipe, typed: str, cards: Cards, runs: Path) -> list[Finding]:
    """Does it fit on the first card, or on the CPU, beside what is taken already? Arithmetic, as `plan` says it."""
    name, on = "recipe fits", _machine(cards)
    present = next(parent for parent in (runs, *runs.absolute().parents) if parent.exists())
    limits = Limits(_memory(), shutil.disk_usage(present).free)
    line = f"ssd-lite plan {typed}" + (f" --gpu {on.key}" if on.key in known.cards() else "")
    if recipe.train.grpo is not None:
        return [Finding(name, "ok", "not planned: GRPO draws completions while it trains")]
    try:
        load = plan.load_of(recipe, None)
    except UserError as error:
        return [Finding("problems", "fail", error.message, "ssd-lite run … --set problems.train=…  # docs/problems.md")]
    try:
        model, _ = plan.find_model(recipe)
        made = estimate(recipe, model, load, on, limits)
    except UserError as error:
        return [Finding(name, "warn", f"not known: {error.message}", line)]
    if not made.fits:
        why = "; ".join(reason for _, reason in made.reasons)
        return [Finding(name, "fail", f"not {on.name}: {why}", f"{line}  # names the keys to change")]
    where = f"{gib(made.gpu_peak_bytes)} of {gib(on.memory_bytes)} on the {on.name}" if on.on_card else on.name
    said = f"{where}, {gib(made.host_peak_bytes)} of memory, {gib(made.disk_peak_bytes)} of disk, by arithmetic"
    return [Finding(name, "ok", said)]


def _machine(cards: Cards) -> known.Machine:
    """The first card with the memory that is free on it; one that is not in the table has no speed, only memory."""
    first = next((card for card in cards.cards if card.total is not None), None)
    if first is None or first.total is None:
        return known.CPU
    free = first.total if first.free is None else first.free
    found = known.card_called(first.name, first.total)
    if found is None:
        slow = known.cards()["l4"]
        found = replace(slow, key="", name=first.name, source="its memory as the driver says, else an L4's figures")
    return replace(found, memory_bytes=free)


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, read_quota().memory or total)
