"""Rounds for people: a section of the report and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_lite.stages.report_html import paragraph, section, table
from ssd_lite.stages.report_words import bounds, percent

ROUNDS_FILE = "rounds.json"


def rounds_section(run_path: Path) -> str:
    """The section of the report; empty where the run has one round."""
    file = run_path / ROUNDS_FILE
    if not file.is_file():
        return ""
    result = json.loads(file.read_text(encoding="utf-8"))
    head, *body = _rows(result["rounds"])
    return section(
        "Rounds",
        paragraph(str(result["warning"])),
        paragraph(_ending(result)),
        table(head, body, caption="The tuned model of each round on the evaluation set; round 1 is this run."),
    )


def shows_rounds(run_path: Path, page: Path) -> bool:
    """False where rounds were run after the page was written."""
    file = run_path / ROUNDS_FILE
    return not file.is_file() or file.stat().st_mtime <= page.stat().st_mtime


def rounds_table(result: Mapping[str, Any]) -> str:
    """The rounds as plain text, then how they ended."""
    rows = _rows(result["rounds"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", _ending(result)])


def _ending(result: Mapping[str, Any]) -> str:
    stopped = result["stopped"]
    how = f"{stopped[0].upper()}{stopped[1:]}." if stopped else f"All {len(result['rounds']) - 1} rounds were run."
    best = "the base" if result["best"] == "base" else f"round {result['best']}"
    return f"{how} Best pass@k: {best}. Every round stays on disk."


def _rows(rounds: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    passes = [f"pass@{k}" for k in rounds[0]["pass_at_k"]]
    head = ["round", *passes, "distinct-1", "distinct-2", "distinct-3", "self-BLEU", "entropy", "survivors"]
    return [[*head, "tokens", "no code", "cut off"], *(_row(one) for one in rounds)]


def _row(one: Mapping[str, Any]) -> list[str]:
    passes = [f"{percent(found['mean'])} {bounds(found)}" for found in one["pass_at_k"].values()]
    diversity = [_interval(one[key]) for key in ("distinct_1", "distinct_2", "distinct_3", "self_bleu")]
    laws = [f"{one['entropy']:.3f}", "–" if one["survivors"] is None else f"{one['survivors']:.2f}"]
    rates = [f"{one['mean_tokens']:.0f}", percent(one["no_code_rate"]), percent(one["cap_rate"])]
    return [one["round"], *passes, *diversity, *laws, *rates]


def _interval(found: Mapping[str, float] | None) -> str:
    return "–" if found is None else f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
