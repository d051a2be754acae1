"""A diagnosis for people: its section of a run's report, its page of its own, and its table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.stages.pages.diagnosis_plots import lines
from ssd_lite.stages.pages.html import bullets, figure, page, paragraph, section, table, text

Report = Mapping[str, Any]
_TITLE = "Diagnosis: the model at each position"
_DATA = "diagnosis.json"
_CHANGED = (
    "Both models at the same positions. The samples were trained on, but for those that curate dropped; the reference, "
    "the base's answers to the same problems at its own decoding, was not."
)


def diagnosis(folder: Path) -> str:
    """The section of a run's report; empty where the run was not diagnosed. Raises UserError for a damaged file."""
    file = folder / _DATA
    if not file.is_file():
        return ""
    try:
        return section(_TITLE, *_parts(json.loads(file.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is damaged ({error!r}).", where=str(file), next_step=f"Type: ssd-lite diagnose {folder}"
        ) from error


def shows_diagnosis(folder: Path, report: Path) -> bool:
    """True unless the run has a diagnosis that is younger than its report."""
    file = folder / _DATA
    return not file.is_file() or file.stat().st_mtime <= report.stat().st_mtime


def page_of(report: Report) -> str:
    """The whole page of a diagnosis, without a run's report."""
    head = f"<header>\n<h1>{text(report['name'])}: diagnosis</h1>\n</header>"
    return page(f"{report['name']}: diagnosis", f"{head}\n{section(_TITLE, *_parts(report))}")


def _parts(report: Report) -> list[str]:
    advice = report["advice"]
    words = [
        *advice["truncation"]["words"],
        advice["noise_words"],
        f"T_train: {advice['t_train_words']}",
        f"T_eval: {_t_eval(advice)}",
        *([advice["matched"]["words"]] if "matched" in advice else []),
    ]
    keys = "".join(f'<span class="key {name}"></span><span>{name}</span>' for name in report["models"])
    head, rows = _figures(report)
    changed = _changed(report)
    return [
        paragraph(_about(report), soft=True),
        bullets(words),
        table(head, rows, caption="Means over the positions that were read."),
        table(*_by_temperature(report), caption="The base under the truncation of the samples, on the same texts."),
        table(*changed, caption=_CHANGED) if changed else "",
        f'<p class="soft">{keys}</p>',
        f'<div class="plots">{"".join(_plots(report))}</div>',
    ]


def _t_eval(advice: Report) -> str:
    start = f"{advice['t_eval']:g}. " if advice["t_eval"] else ""
    return start + str(advice["t_eval_words"])


def _about(report: Report) -> str:
    positions = report["models"]["base"]["positions"]
    file = f", GGUF type {report['gguf_type']}" if report["gguf_type"] else ""
    return (
        f"{report['note']}, {positions:,} positions, read with {report['engine']}{file} under {_law(report['law'])}; "
        "each position's law given the tokens before it, over the whole vocabulary."
    )


def _law(law: Mapping[str, Any]) -> str:
    min_p = f", min-p {law['min_p']:g}" if law["min_p"] else ""
    return f"T {law['temperature']:g}, top-k {law['top_k'] or 'off'}, top-p {law['top_p']:g}{min_p}"


def _figures(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of the models."""
    models = report["models"]
    rows = [
        ["mass outside the support, at T_train", *(_percent(m["tail"]) for m in models.values())],
        ["positions with 1 % or more there", *(_percent(m["tail_positions"]) for m in models.values())],
        ["mass outside the support, at T 1", *(_percent(m["tail_at_1"]) for m in models.values())],
        ["locks where one token survives", *(_percent(m["locks_closed"]) for m in models.values())],
        ["forks where a token of 10 % is cut", *(_percent(m["forks_cut"]) for m in models.values())],
        ["survivors", *(f"{m['survivors']:.2f}" for m in models.values())],
        ["entropy of the sampling law, nats", *(f"{m['law_entropy']:.3f}" for m in models.values())],
        ["entropy at T 1, nats", *(f"{m['entropy']:.3f}" for m in models.values())],
    ]
    kinds = {"settled": "settled", "lock": "locks", "fork": "forks", "diffuse": "diffuse"}
    rows += [[name, *(_percent(m["kinds"][kind]) for m in models.values())] for kind, name in kinds.items()]
    rows.append(["tokens that are the model's first", *(_percent(m["drawn_first"]) for m in models.values())])
    return ["figure", *models], rows


def _by_temperature(report: Report) -> tuple[list[str], list[list[str]]]:
    head = ["temperature", "outside, at T", "outside, at T 1", "locks closed", "forks cut", "survivors", "entropy"]
    shares = ("tail", "tail_at_1", "locks_closed", "forks_cut")
    rows = report["models"]["base"]["curves"]["train"]
    numbers = (("survivors", 2), ("law_entropy", 3))
    return head, [
        [
            f"{row['temperature']:g}",
            *(_percent(row[key]) for key in shares),
            *(f"{row[key]:.{digits}f}" for key, digits in numbers),
        ]
        for row in rows
    ]


def _changed(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows of the table of what training changed; None before it."""
    columns = {"on its samples": report["between"], "on the reference": report["between_reference"]}
    there = {name: found for name, found in columns.items() if found is not None}
    if not there:
        return None
    cells = [_changes(found) for found in there.values()]
    return ["after training", *there], [[name, *(one[name] for one in cells)] for name in cells[0]]


def _changes(found: Report) -> dict[str, str]:
    locks, forks = found["locks"], found["forks"]
    return {
        "positions": f"{found['positions']:,}",
        "positions whose first token is another one": _percent(found["swaps"]),
        "agreement of ranks over the base's first 20 (Spearman)": _number(found["rank_agreement"]),
        "mass on the base's support at T 1": _change(found["kept"]["base"], found["kept"]["tuned"]),
        "locks": str(locks["count"]),
        "locks that are sharper": _percent(locks["sharpened"]),
        "first token's mass at locks": _change(locks["first_base"], locks["first_tuned"]),
        "forks": str(forks["count"]),
        "forks that still are forks": _percent(forks["kept"]),
        "survivors at forks": _change(forks["survivors_base"], forks["survivors_tuned"]),
        "entropy at T 1 at forks, nats": _change(forks["entropy_base"], forks["entropy_tuned"]),
    }


def _plots(report: Report) -> list[str]:
    models, law = report["models"], report["law"]
    ranks = {
        name: [(float(rank), 100 * mass) for rank, mass in enumerate(model["mass_by_rank"], start=1)]
        for name, model in models.items()
    }
    mark = (law["temperature"], "T_train")
    drawn = [
        figure(
            lines(ranks, "Mean mass by rank", "rank", "% of the mass at T 1", logarithmic=True),
            "Mean mass at T 1 of each model's own rank 1 to 60.",
        ),
        figure(
            lines(
                _curve(models, "train", "tail", 100), "Mass outside the support", "temperature", "% outside", mark=mark
            ),
            "Mass outside the support at each temperature, under the truncation of the samples.",
        ),
    ]
    which = "evaluate" if "evaluate" in models["base"]["curves"] else "train"
    under = "that the tuned model is evaluated with" if which == "evaluate" else "of the samples"
    for key, name, label in (
        ("survivors", "Survivors", "mean survivors"),
        ("law_entropy", "Entropy after truncation", "mean entropy in nats"),
    ):
        axis = "T_eval" if which == "evaluate" else "temperature"
        drawing = lines(_curve(models, which, key), f"{name} by temperature", axis, label)
        drawn.append(figure(drawing, f"{name} at each temperature, under the truncation {under}."))
    return drawn


def _curve(models: Report, name: str, key: str, factor: float = 1.0) -> dict[str, list[tuple[float, float]]]:
    return {
        model: [(row["temperature"], factor * row[key]) for row in value["curves"][name]]
        for model, value in models.items()
    }


def terminal_text(report: Report) -> str:
    """The tables and the advice as plain lines."""
    advice = report["advice"]
    head, rows = _figures(report)
    changed = _changed(report)
    parts = [_about(report), "", *_columns([["", *head[1:]], *rows])]
    parts += ["", *_columns([changed[0], *changed[1]])] if changed else []
    parts += ["", *advice["truncation"]["words"], advice["noise_words"], f"T_train: {advice['t_train_words']}"]
    parts += [f"T_eval: {_t_eval(advice)}", *([advice["matched"]["words"]] if "matched" in advice else [])]
    return "\n".join(parts)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _change(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.3f} → {after:.3f}"
