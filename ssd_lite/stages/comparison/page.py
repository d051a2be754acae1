"""The page and the terminal table of a comparison: verdict, arms against every control, decodings tried, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.stages.comparison.rows import CONTROLS, name_of
from ssd_lite.stages.pages import svg_plots
from ssd_lite.stages.pages.html import block, bullets, figure, page, paragraph, section, table, text
from ssd_lite.stages.pages.words import bounds, duration, law, percent, signed

_TONES = {"contribution": "gain", "loss": "loss"}
_CONTROL_NAMES = {
    "base@matched": "base, same decoding",
    "base@training": "base, training decoding",
    "base@best": "base at its best",
    "null_arm@matched": "null-SSD",
}
Rows = Sequence[Mapping[str, Any]]


def render(recipe: Recipe, result: Mapping[str, Any]) -> str:
    """The whole document as one text without references to anything outside it."""
    title = f"{recipe.name}: did training help?"
    parts = [
        f"<header>\n<h1>{text(title)}</h1>\n</header>",
        _verdict(result),
        _set_section("Every arm on the test split", result["rows"]),
        *(_set_section(f"Every arm on {name}", rows) for name, rows in result["extra"].items()),
        _tried(result),
        _cost(result["rows"]),
        _sets(result),
        section("The recipe", block(dump_recipe(recipe), label="compare.yaml")),
    ]
    return page(title, "\n".join(parts))


def _verdict(result: Mapping[str, Any]) -> str:
    tone = _TONES.get(result["verdict"], "flat")
    note = (
        "Decodings were chosen on the dev split and are judged on the test split. Intervals hold 95 % of a bootstrap "
        "over problems and, where there are several, seeds; every arm draws with the same random numbers."
    )
    return section(
        "Verdict",
        f'<div class="verdict {tone}"><p>{text(result["sentence"])}</p></div>',
        bullets([*result["also"], *_left_out(result)]),
        paragraph(note, soft=True),
    )


def _left_out(result: Mapping[str, Any]) -> list[str]:
    return [f"{name} is left out: {why}." for name, why in result.get("left_out", {}).items()]


def _set_section(title: str, rows: Rows) -> str:
    k = min(rows[0]["pass_at_k"], key=int)
    rates = [_rate(row, k) for row in rows]
    width = 7 * max(len(row["label"]) for row in rows) + 12
    drawing = svg_plots.intervals(rates, f"pass@{k} of every arm", f"pass@{k} with 95 % interval", left=width)
    return section(
        title,
        table(_figure_head(rows), [_figure_row(row) for row in rows], caption="pass@k with 95 % interval."),
        figure(drawing, f"pass@{k}; the interval is over problems and seeds."),
        "<h3>Paired differences against the controls, in points</h3>",
        table(["arm", *_controls(rows)], _difference_rows(rows, k), caption=f"pass@{k}, row − column, 95 % interval."),
        "<h3>How they answer</h3>",
        table(_MANNERS, [_manners(row) for row in rows], caption="Means over the seeds."),
    )


def _rate(row: Mapping[str, Any], k: str) -> svg_plots.Rate:
    found = row["pass_at_k"][k]
    series = "base" if row["model"] == "base" else "tuned"
    return svg_plots.Rate(row["label"], series, found["mean"], found["low"], found["high"])


def _figure_head(rows: Rows) -> list[str]:
    passes = [f"pass@{k}" for k in rows[0]["pass_at_k"]]
    return ["arm", "decoding", *passes, "by seed"]


def _figure_row(row: Mapping[str, Any]) -> list[str]:
    passes = [f"{percent(found['mean'])} {bounds(found)}" for found in row["pass_at_k"].values()]
    first = min(row["by_seed"], key=int)
    seeds = ", ".join(f"{100 * rate:.1f}" for rate in row["by_seed"][first])
    return [row["label"], law(row["decoding"]), *passes, seeds]


_MANNERS = ["arm", "no code", "cut off", "mean tokens", "hedging words per 1,000"]


def _manners(row: Mapping[str, Any]) -> list[str]:
    rates = [percent(row["no_code_rate"]), percent(row["cap_rate"]), f"{row['mean_tokens']:.0f}"]
    return [row["label"], *rates, f"{row['hedging_per_1000_words']:.2f}"]


def _controls(rows: Rows) -> list[str]:
    there = {row["key"] for row in rows}
    return [_CONTROL_NAMES[key] for key in (f"{m}@{role}" for m, role in CONTROLS) if key in there]


def _difference_rows(rows: Rows, k: str) -> list[list[str]]:
    there = [f"{m}@{role}" for m, role in CONTROLS if any(row["key"] == f"{m}@{role}" for row in rows)]
    return [[row["label"], *(_difference(row, key, k) for key in there)] for row in rows]


def _difference(row: Mapping[str, Any], control: str, k: str) -> str:
    found = row["differences"].get(control)
    return f"{signed(100 * found[k]['mean'])} {bounds(found[k], signed)}" if found else "–"


def _tried(result: Mapping[str, Any]) -> str:
    parts = []
    for arm, tried in result["tried"].items():
        ordered = sorted(tried, key=lambda item: -sum(item["pass_at_1"]))
        rows = [
            [law(item["decoding"]), ", ".join(f"{100 * rate:.1f}" for rate in item["pass_at_1"])] for item in ordered
        ]
        parts += [
            f"<h3>{text(arm)}</h3>",
            table(["decoding", "pass@1 by seed, in percent"], rows, caption="Best first."),
        ]
    return section("Decodings tried on the dev split", *parts)


def _cost(rows: Rows) -> str:
    seen = {row["model"]: row for row in rows}
    body = [
        [
            name_of(model),
            _by_seed(row["rows"]),
            _by_seed(row["steps"]),
            *(
                [f"{row['tokens_sampled']:,}", f"{row['tokens_trained']:,}", duration(row["seconds"])]
                if row["rows"]
                else 3 * ["–"]
            ),
            f"{row['tokens_answered']:,}",
            duration(row["seconds_answered"]),
        ]
        for model, row in seen.items()
    ]
    note = (
        "Rows and optimiser steps seed by seed (of GRPO its completions), the rest summed over the seeds. Samples that "
        "arms share count for each of them. Training time is that of every process that sampled, curated or trained; "
        "evaluation has all splits and sets, the search for a decoding included."
    )
    head = ["arm", "rows", "steps", "tokens sampled", "tokens read in training", "time", "tokens answered", "time"]
    caption = "Sampling, curating and training; then evaluation."
    return section("What each arm learnt from and cost", paragraph(note), table(head, body, caption=caption))


def _by_seed(counts: Sequence[int | None]) -> str:
    return ", ".join("–" if count is None else f"{count:,}" for count in counts) or "–"


def _sets(result: Mapping[str, Any]) -> str:
    rows = [
        [name, about["name"], f"{about['count']}", about["golden"] or "–", about["sha256"]]
        for name, about in result["sets"].items()
    ]
    head = ["split", "set", "problems", "golden solutions", "SHA-256 of the set"]
    note = f"{result['n']} completions a problem on the test split; programs ran under {result['grader']}."
    return section("Problem sets", paragraph(note), table(head, rows, caption="What was answered.", wide=1))


def terminal_table(result: Mapping[str, Any]) -> str:
    """Every arm with pass@k, and its difference against the base at its best and the null arm; then the verdict."""
    rows = result["rows"]
    first = min(rows[0]["pass_at_k"], key=int)
    there = {row["key"] for row in rows}
    against = [key for key in ("base@matched", "base@best", "null_arm@matched") if key in there]
    head = [
        "arm",
        "decoding",
        *(f"pass@{k}" for k in rows[0]["pass_at_k"]),
        *(f"- {_CONTROL_NAMES[k]}" for k in against),
    ]
    lines = [head]
    for row in rows:
        passes = [f"{percent(found['mean'])} {bounds(found)}" for found in row["pass_at_k"].values()]
        lines.append([row["label"], law(row["decoding"]), *passes, *(_difference(row, key, first) for key in against)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*shown, "", result["sentence"], *result["also"], *_left_out(result)])
