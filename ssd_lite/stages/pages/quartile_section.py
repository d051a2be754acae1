"""The report's section on the quartiles of the base's pass rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssd_lite.stages.pages.html import paragraph, section, table
from ssd_lite.stages.pages.words import bounds, percent, signed


def quartile_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of the report; empty where there are no quartiles."""
    if not rows:
        return ""
    body = [
        [
            row["quartile"],
            f"{row['count']}",
            percent(row["base"]),
            percent(row["tuned"]),
            f"{signed(100 * row['difference']['mean'])} {bounds(row['difference'], signed)}",
        ]
        for row in rows
    ]
    note = (
        "The problems in four parts by how often the base passes them. Half of the base's samples choose the part and "
        "the other half are its score, so that no part holds the base's bad luck alone."
    )
    head = ["quartile", "problems", "base", "tuned", "difference"]
    return section(
        "By quartile of the base",
        paragraph(note, soft=True),
        table(head, body, caption="Share of samples that pass; differences in points with their 95 % interval."),
    )
