"""The rounds against the base for people: part of the report's section, and lines in the terminal; drops in red."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_lite.stages.pages.guard_section import red
from ssd_lite.stages.pages.html import paragraph, table, text
from ssd_lite.stages.pages.words import bounds, signed

_ABOUT = (
    "Each round against the base that the run began with, on the evaluation set and on the guard's sets: a round's own "
    "report compares it with the round before, so a slow fall would show in none of them. A drop is where the whole "
    "95 % interval lies below 0."
)


def exported(result: Mapping[str, Any]) -> str:
    """The round whose files are exported: the best; round 1, which always is, where no round beat the base."""
    return "1" if result["best"] == "base" else str(result["best"])


def against_parts(result: Mapping[str, Any]) -> list[str]:
    """What the report's section shows of it; empty for a run without a guard in which nothing fell."""
    rows, fallen = [], []
    for number, found in result.get("against_base", {}).items():
        k = min(found["difference"], key=int)
        rows.append([number, f"evaluation set, pass@{k}", _points(found["difference"][k])])
        fallen += [f"Round {number}, evaluation set: {found['sentence']}"] if found["verdict"] == "loss" else []
        for entry in found["guard"]:
            rows.append([number, f"guard {entry['name']}", _points(entry["difference"])])
            fallen += [f"Round {number}, guard {entry['name']}: {entry['sentence']}"] if entry["dropped"] else []
    if len(rows) == len(result.get("against_base", {})) and not fallen:
        return []
    boxes = [f'<div class="verdict loss"><p>{text(line)}</p></div>' for line in fallen]
    head = ["round", "set", "tuned − base in points"]
    return [
        *boxes,
        paragraph(_ABOUT),
        table(head, rows, caption="Paired differences with their 95 % interval.", wide=1),
    ]


def against_lines(result: Mapping[str, Any]) -> list[str]:
    """For the terminal: each round's guard sets against the base, and where the evaluation set fell; drops in red."""
    lines = []
    for number, found in result.get("against_base", {}).items():
        start = f"round {number} against the base"
        if found["verdict"] == "loss":
            lines.append(red(f"{start}: evaluation set: {found['sentence']} DROP"))
        for entry in found["guard"]:
            line = f"{start}: guard {entry['name']}: {_points(entry['difference'])} points"
            lines.append(red(f"{line}. DROP") if entry["dropped"] else line)
    return lines


def _points(found: Mapping[str, float]) -> str:
    return f"{signed(100 * found['mean'])} {bounds(found, signed)}"
