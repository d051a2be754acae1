"""The verdict of a comparison in one line, and the lines that qualify it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssd_lite.stages.comparison_rows import BEST, MATCHED


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
    seeds = "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    over = f"pass@{k}, {problems} test problems, {seeds}"
    if found["low"] > 0:
        kind = "contribution"
        text = f"Training contributed {points(found)} beyond the best decoding of the base ({over})."
    elif found["high"] < 0:
        kind = "loss"
        text = f"Training cost {points(found)} against the best decoding of the base ({over})."
    else:
        kind = "none shown"
        could = f"; this set could show {100 * found['smallest']:.1f}" if found["smallest"] is not None else ""
        text = f"No contribution shown: {points(found)} against the best decoding of the base ({over}){could}."
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
        lines.append(
            f"Against the null arm (trained alike on samples at T = 1 without truncation): {points(null)}. "
            + ("The mechanism is more than training as such." if null["low"] > 0 else "Not shown to be more than that.")
        )
    if "base@training" in by_key:
        training = by_key["base@training"]["differences"].get(f"base@{MATCHED}")
        if training:
            lines.append(f"The base at the training decoding, against its own: {points(training[k])}.")
    return lines
