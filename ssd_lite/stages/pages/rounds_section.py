"""Rounds for people: a section of the report and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_lite.stages.pages import svg_plots
from ssd_lite.stages.pages.html import figure, paragraph, section, table
from ssd_lite.stages.pages.round_guard_section import against_lines, against_parts
from ssd_lite.stages.pages.words import bounds, percent

ROUNDS_FILE = "rounds.json"
_INTERVAL = "with its 95 % interval over the problems"
# What the rounds stop by, beside pass@k (`round_numbers.changes`), and how to read it.
_DIVERSITY = {
    "distinct_2": ("distinct-2", "higher is more varied"),
    "self_bleu": ("self-BLEU", "lower is more varied"),
}


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
        paragraph(ending(result)),
        '<div class="plots">',
        *_plots(result["rounds"]),
        "</div>",
        table(head, body, caption="The tuned model of each round on the evaluation set; round 1 is this run."),
        *against_parts(result),
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
    return "\n".join([*lines, "", *against_lines(result), ending(result)])


def ending(result: Mapping[str, Any]) -> str:
    """How the rounds ended and which of them is the best."""
    stopped = result["stopped"]
    run = len(result["rounds"]) - 1
    how = f"{stopped[0].upper()}{stopped[1:]}." if stopped else f"All {run} rounds were run."
    if not stopped and run < result.get("asked", run):
        how = f"Not through: {run} of {result['asked']} rounds were run."
    best = "the base" if result["best"] == "base" else f"round {result['best']}"
    return f"{how} Best pass@k: {best}. Every round stays on disk."


def _plots(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Small plots of the figures that the rounds stop by and of the entropy; none for a diversity not measured."""
    k = min(rounds[0]["pass_at_k"], key=int)
    passes = [_point(one["round"], one["pass_at_k"][k], 100) for one in rounds]
    drawings = [_figure(passes, f"pass@{k}", f"pass@{k} in %", f"pass@{k} {_INTERVAL}; higher is better")]
    for key, (name, reading) in _DIVERSITY.items():
        points = [_point(one["round"], one[key], 1) for one in rounds if one[key] is not None]
        drawings.append(_figure(points, name, name, f"{name} {_INTERVAL}; {reading}"))
    laws = [svg_plots.Point(one["round"], *[one["entropy"]] * 3) for one in rounds if one["entropy"] is not None]
    if laws:
        caption = "Mean entropy of the laws that the tokens were drawn from; lower is more certain"
        drawings.append(_figure(laws, "entropy", "entropy in nats", caption))
    return drawings


def _figure(points: Sequence[svg_plots.Point], name: str, y_label: str, caption: str) -> str:
    return figure(svg_plots.course(points, f"{name} by round", "round", y_label), f"{caption}.")


def _point(name: str, found: Mapping[str, float], scale: float) -> svg_plots.Point:
    return svg_plots.Point(name, scale * found["mean"], scale * found["low"], scale * found["high"])


def _rows(rounds: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    passes = [f"pass@{k}" for k in rounds[0]["pass_at_k"]]
    head = ["round", *passes, "distinct-1", "distinct-2", "distinct-3", "self-BLEU", "entropy", "survivors"]
    return [[*head, "tokens", "no code", "cut off"], *(_row(one) for one in rounds)]


def _row(one: Mapping[str, Any]) -> list[str]:
    passes = [f"{percent(found['mean'])} {bounds(found)}" for found in one["pass_at_k"].values()]
    diversity = [_interval(one[key]) for key in ("distinct_1", "distinct_2", "distinct_3", "self_bleu")]
    laws = [_known(one["entropy"], 3), _known(one["survivors"], 2)]
    rates = [f"{one['mean_tokens']:.0f}", percent(one["no_code_rate"]), percent(one["cap_rate"])]
    return [one["round"], *passes, *diversity, *laws, *rates]


def _known(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(found: Mapping[str, float] | None) -> str:
    return "–" if found is None else f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
