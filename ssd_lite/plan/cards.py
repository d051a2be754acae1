"""The machines a plan is made for: cards by name with memory and speed as the maker states them, or no card."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from ssd_lite.errors import UserError

MIB = 2**20
# Effective speed of two cores, docs/results.md: LoRA on the 135M model, 158 tok/s at 4 x 134.5M operations a token.
# The bandwidth is a guess.
CPU_FLOPS, CPU_BYTES_PER_S = 85e9, 12e9


@dataclass(frozen=True)
class Machine:
    """`memory_bytes` of the card, `flops` dense bf16 operations a second, `bandwidth` bytes a second; `source` of them.

    `on_card` False is a machine without one: `memory_bytes` is 0, and speed is that of two cores as measured.
    """

    key: str
    name: str
    memory_bytes: int
    flops: float
    bandwidth: float
    source: str
    on_card: bool = True


CPU = Machine("cpu", "no card, two cores", 0, CPU_FLOPS, CPU_BYTES_PER_S, "docs/results.md", False)


@cache
def cards() -> dict[str, Machine]:
    """The packaged cards by key, smallest memory first."""
    text = resources.files("ssd_lite.plan").joinpath("data/cards.yaml").read_text(encoding="utf-8")
    found = [
        Machine(
            key, entry["name"], entry["memory_mib"] * MIB, entry["bf16_tflops"] * 1e12, entry["gb_per_s"] * 1e9,
            entry["source"],
        )
        for key, entry in yaml.safe_load(text).items()
    ]  # fmt: skip
    return {card.key: card for card in sorted(found, key=lambda card: (card.memory_bytes, card.key))}


def machine(key: str | None) -> Machine:
    """A card by its key, the machine without one for None or "cpu". Raises UserError with the nearest name."""
    if key is None or key.lower() == "cpu":
        return CPU
    found = cards().get(key.lower())
    if found is None:
        close = difflib.get_close_matches(key.lower(), cards(), n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"no card named {key!r}{guess}", where="--gpu", next_step=f"Known: cpu, {', '.join(cards())}.")
    return found


def card_called(name: str, memory_bytes: int) -> Machine | None:
    """The card that a driver calls `name`, such as "NVIDIA A100-SXM4-40GB"; of several the one nearest in memory."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found = [card for card in cards().values() if card.key.split("-")[0].removeprefix("rtx") in words]
    return min(found, key=lambda card: abs(card.memory_bytes - memory_bytes), default=None)
