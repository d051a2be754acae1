"""The guard for people: its section of the report, and its lines in the terminal, where a drop is red."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ssd_lite.errors import UserError
from ssd_lite.stages.evaluation.guard_verdict import GUARD_FILE
from ssd_lite.stages.pages.html import bullets, paragraph, section, table, text
from ssd_lite.stages.pages.words import bounds, percent, signed

Entry = Mapping[str, Any]
_ARMS = ("base", "tuned")


def guard(folder: Path) -> str:
    """The section of a run's report; empty where the run has no guard. Raises UserError for a damaged file."""
    file = folder / "evaluations" / GUARD_FILE
    if not file.is_file():
        return ""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return section("Guard", *_parts(entries))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"is damaged ({error!r}).", where=str(file)) from error


def _parts(entries: Sequence[Entry]) -> list[str]:
    fallen = [
        f'<div class="verdict loss"><p>{text(entry["name"])}: {text(entry["sentence"])}</p></div>'
        for entry in entries
        if entry["dropped"]
    ]
    about = (
        "Sets on which the tuned model must not get worse, each arm under its decoding of the evaluation. A drop is "
        "where the 95 % interval of the paired difference lies below 0."
    )
    rows = [row for entry in entries for row in _rows(entry)]
    words = [
        [f"{entry['name']}, {arm}", f"{entry['arms'][arm]['words']:,}", _words(entry["arms"][arm])]
        for entry in entries
        for arm in _ARMS
    ]
    head = ["set and arm", "right", "no answer", "cut off", "mean tokens", "hedging per 1,000 words"]
    return [
        *fallen,
        paragraph(about),
        table(head, rows, caption="Right answers with their 95 % interval; differences are tuned − base, in points."),
        table(["set and arm", "words", "the ten hedging words"], words, caption="How often each stands.", wide=2),
        bullets([*(_set_line(entry) for entry in entries), *(w for entry in entries for w in entry["warnings"])]),
    ]


def _rows(entry: Entry) -> list[list[str]]:
    base, tuned = (entry["arms"][arm] for arm in _ARMS)
    rows = [
        [
            f"{entry['name']}, {arm}",
            f"{percent(figures['right']['mean'])} {bounds(figures['right'])}",
            percent(figures["no_answer_rate"] + figures["no_code_rate"]),
            percent(figures["cap_rate"]),
            f"{figures['mean_tokens']:.1f}",
            f"{figures['hedging_per_1000_words']:.2f}",
        ]
        for arm, figures in zip(_ARMS, (base, tuned), strict=True)
    ]
    paired = entry["difference"]
    missing = [figures["no_answer_rate"] + figures["no_code_rate"] for figures in (base, tuned)]
    changes = [
        f"{signed(100 * paired['mean'])} {bounds(paired, signed)}",
        signed(100 * (missing[1] - missing[0])),
        signed(100 * (tuned["cap_rate"] - base["cap_rate"])),
        signed(tuned["mean_tokens"] - base["mean_tokens"]),
        signed(tuned["hedging_per_1000_words"] - base["hedging_per_1000_words"], 2),
    ]
    return [*rows, [f"{entry['name']}, difference", *changes]]


def _words(figures: Entry) -> str:
    return ", ".join(f"{word} {count}" for word, count in figures["hedging_words"].items())


def _set_line(entry: Entry) -> str:
    problems = entry["problems"]
    each = "one completion" if entry["n"] == 1 else f"{entry['n']} completions"
    cap = entry["arms"]["base"]["settings"]["max_new_tokens"]
    return f"{entry['name']} is {problems['name']} ({problems['count']} problems, {each} each, at most {cap:,} tokens)."


def terminal_lines(entries: Sequence[Entry]) -> list[str]:
    """One line a set; a drop in red, which a terminal shows and a file does not."""
    lines = []
    for entry in entries:
        base, tuned = (entry["arms"][arm] for arm in _ARMS)
        line = (
            f"guard {entry['name']}: {percent(base['right']['mean'])} to {percent(tuned['right']['mean'])}, "
            f"{signed(100 * entry['difference']['mean'])} {bounds(entry['difference'], signed)} points; "
            f"hedging {base['hedging_per_1000_words']:.1f} to {tuned['hedging_per_1000_words']:.1f} per 1,000 words; "
            f"length {base['mean_tokens']:.0f} to {tuned['mean_tokens']:.0f} tokens; "
            f"cut off {percent(base['cap_rate'])} to {percent(tuned['cap_rate'])}"
        )
        lines.append(red(f"{line}. DROP") if entry["dropped"] else line)
    return lines


def red(line: str) -> str:
    """A line in red."""
    return click.style(line, fg="red", bold=True)
