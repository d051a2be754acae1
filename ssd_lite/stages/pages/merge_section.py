"""The report's section on the merge: how far the merged model is from base + adapter as trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_lite.stages.merge_check import nats
from ssd_lite.stages.pages.html import paragraph, section, table, text


def merged_against_trained(summary: Mapping[str, Any]) -> str:
    """From the summary of the stage merge; empty where it kept no check."""
    check = summary.get("check")
    if not check:
        return ""
    if "skipped" in check:
        return section("Merged against trained", paragraph(f"Not compared: {check['skipped']}."))
    warning = f'<div class="verdict loss"><p>{text(check["advice"])}</p></div>' if check["bad"] else ""
    onto = "the NF4 base, dequantised" if summary.get("onto") == "dequantised" else "the original base"
    bounds = check["bounds"]
    rows = [
        ["KL(trained ‖ merged), nats a token", nats(check["kl"]), f"at most {bounds['kl']:g}"],
        ["largest at one position", nats(check["kl_worst"]), "–"],
        ["same likeliest token", f"{100 * check['same_first']:.1f} %", f"at least {100 * bounds['same_first']:.0f} %"],
    ]
    caption = f"{check['positions']} positions of {check['prompts']} training samples, teacher-forced, at T = 1."
    return section(
        "Merged against trained",
        warning,
        paragraph(f"What was evaluated is the merged model: the adapter added to {onto}."),
        table(["figure", "seen", "expected"], rows, caption=caption),
    )
