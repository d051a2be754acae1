"""The verdict of a comparison in one line, and the lines that qualify it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssd_lite.stages.comparison.rows import BEST, MATCHED, name_of


def verdict(rows: Sequence[Mapping[str, Any]], problems: int) -> dict[str, Any]:
    """`verdict` (contribution, loss or none shown), `sentence`, and `also`: what null arm and same decoding say.

    Judged is SSD, or where it is not there the first trained model, at its best decoding where that was looked for,
    against the base at its best; pass@k for the smallest k. A contribution is claimed only where the interval leaves
    out zero.
    """
    by_key = {row["key"]: row for row in rows}
    model = "ssd" if f"ssd@{MATCHED}" in by_key else next(row["model"] for row in rows if row["model"] != "base")
    row = by_key.get(f"{model}@{BEST}", by_key[f"{model}@{MATCHED}"])
    k = min(row["pass_at_k"], key=int)
    found = row["differences"][f"base@{BEST}"][k]
    who = "Training" if model == "ssd" else f"Training ({name_of(model)})"
    seeds = "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    over = f"pass@{k}, {problems} test problems, {seeds}"
    if found["low"] > 0:
        kind = "contribution"
        text = f"{who} contributed {points(found)} beyond the best decoding of the base ({over})."
    elif found["high"] < 0:
        kind = "loss"
        text = f"{who} cost {points(found)} against the best decoding of the base ({over})."
    else:
        kind = "none shown"
        could = f"; this set could show {100 * found['smallest']:.1f}" if found["smallest"] is not None else ""
        of = "" if model == "ssd" else f" of {name_of(model)}"
        text = f"No contribution{of} shown: {points(found)} against the best decoding of the base ({over}){could}."
    return {"verdict": kind, "sentence": text, "judged": row["key"], "also": _also(by_key, model, k)}


def points(found: Mapping[str, float]) -> str:
    """A difference in points with its interval: `+4.2 points [+0.9, +7.4]`."""
    return f"{100 * found['mean']:+.1f} points [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def _also(by_key: Mapping[str, Mapping[str, Any]], model: str, k: str) -> list[str]:
    lines = []
    matched = by_key[f"{model}@{MATCHED}"]
    same = matched["differences"][f"base@{MATCHED}"][k]
    lines.append(f"At the same decoding as the base: {points(same)}.")
    if model != "null_arm" and f"null_arm@{MATCHED}" in matched["differences"]:
        null = matched["differences"][f"null_arm@{MATCHED}"][k]
        lines.append(_against_null(matched, by_key[f"null_arm@{MATCHED}"], null))
    if "base@training" in by_key:
        training = by_key["base@training"]["differences"].get(f"base@{MATCHED}")
        if training:
            lines.append(f"The base at the training decoding, against its own: {points(training[k])}.")
    return lines


def _against_null(row: Mapping[str, Any], null: Mapping[str, Any], found: Mapping[str, float]) -> str:
    """What the null arm says. Only where both were trained on as much is a difference due to what the samples were."""
    if (row["rows"], row["steps"]) == (null["rows"], null["steps"]):
        meaning = (
            "The mechanism is more than training as such." if found["low"] > 0 else "Not shown to be more than that."
        )
        return (
            f"Against the null arm (trained alike on samples at T = 1 without truncation): {points(found)}. {meaning}"
        )
    trained = f"{name_of(row['model'])} was trained on {_amount(row)}, the null arm on {_amount(null)}"
    return (
        f"Against the null arm (trained on samples at T = 1 without truncation): {points(found)}. Not alike in amount: "
        f"{trained}, so this does not tell the mechanism from training as such."
    )


def _amount(row: Mapping[str, Any]) -> str:
    """`79 rows and 10 steps`; with several seeds `79, 81 rows and 10, 11 steps`."""
    rows, steps = (", ".join("?" if n is None else f"{n:,}" for n in row[key]) for key in ("rows", "steps"))
    return f"{rows} rows and {steps} steps"
