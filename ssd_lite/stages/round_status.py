"""The state of a run with its rounds, each a run folder in rounds/: how far each is, and how they ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_lite.progress import duration
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pages.rounds_section import ROUNDS_FILE, ending
from ssd_lite.stages.pages.words import bounds, percent
from ssd_lite.stages.status import heartbeat_lines, status

ASKED_KEY = "rounds"  # in the manifest: how many were asked for last, since a run that is done may get more


def status_with_rounds(run: RunFolder) -> dict[str, Any]:
    """`status` with `rounds`, None for a run of one round. A round that works counts as work in the run.

    `rounds`: `asked`, how many; `pass_at_k` of the tuned model of each round that has it; `made`, the status of each
    round from 2 on; `result`, the content of rounds.json, None while the rounds are not through.
    """
    seen = status(run)
    rounds = _rounds(run)
    if rounds is not None:
        working = (one["in_use_by"] for one in rounds["made"].values() if one["in_use_by"])
        seen["in_use_by"] = seen["in_use_by"] or next(working, None)
    return {**seen, "rounds": rounds}


def _rounds(run: RunFolder) -> dict[str, Any] | None:
    asked = int(run.manifest().get(ASKED_KEY, run.recipe.rounds))
    # A round that was killed before it had a recipe holds nothing yet.
    folders = [file.parent for file in (run.path / "rounds").glob("*/recipe.yaml") if file.parent.name.isdigit()]
    inner = {folder.name: RunFolder.open(folder) for folder in sorted(folders, key=lambda path: int(path.name))}
    if asked == 1 and not inner:
        return None
    result = _read(run.path / ROUNDS_FILE)
    if result is not None and not result["stopped"] and len(result["rounds"]) - 1 != asked:
        result = None  # of an earlier command, which asked for fewer
    rates = {number: _pass_at_k(one) for number, one in {"1": run, **inner}.items()}
    return {
        "asked": asked,
        "pass_at_k": {number: found for number, found in rates.items() if found is not None},
        "made": {number: _status(one) for number, one in inner.items()},
        "result": result,
    }


def _status(run: RunFolder) -> dict[str, Any]:
    """Only the best round is exported, so that is never what a round does next."""
    seen = status(run)
    left = (stage for stage, entry in seen["stages"].items() if not entry["done"] and stage != "export")
    return {**seen, "next": next(left, None)}


def _pass_at_k(run: RunFolder) -> dict[str, Any] | None:
    report = _read(run.path / "evaluations" / "tuned" / "report.json")
    return None if report is None else report.get("pass_at_k")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def round_lines(rounds: Mapping[str, Any] | None) -> list[str]:
    """The rounds for people: one line each, what works at one now, and how they ended. Empty for a run of one round."""
    if rounds is None:
        return []
    asked, made, result = rounds["asked"], rounds["made"], rounds["result"]
    lines = [f"round 1 of {asked}: this run{_rate(rounds, '1')}"]
    for number, seen in made.items():
        of = f" of {asked}" if int(number) <= asked else ""
        lines.append(f"round {number}{of}: {_far(seen)}{_rate(rounds, number)}")
        if seen["next"] or seen["in_use_by"]:
            lines += [f"  {line}" for line in heartbeat_lines(seen["heartbeat"], bool(seen["in_use_by"]))]
    if result is not None:
        return [*lines, f"rounds: {ending(result)}"]
    first = max([1, *map(int, made)]) + 1
    if first <= asked:
        lines.append(f"not begun: round {first}" + (f" to {asked}" if first < asked else ""))
    return lines


def _far(seen: Mapping[str, Any]) -> str:
    counts = seen["counts"]
    made = f"{counts['samples']} samples, {counts['training_rows']} training rows, {counts['steps']} steps"
    if seen["next"]:
        return f"at {seen['next']}, {made}"
    return f"done, {duration(sum(entry.get('seconds', 0) for entry in seen['stages'].values()))}, {made}"


def _rate(rounds: Mapping[str, Any], number: str) -> str:
    found = rounds["pass_at_k"].get(number)
    if not found:
        return ""
    k = min(found, key=int)
    return f", pass@{k} {percent(found[k]['mean'])} {bounds(found[k])}"
