"""The stage that reports: an evaluated run in, report.html and the figures of the model card out; and `table`."""

from __future__ import annotations

import time
from typing import Any

from ssd_lite.atomic import write_text
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pages.diagnosis_section import shows_diagnosis
from ssd_lite.stages.pages.model_card import write_card
from ssd_lite.stages.pages.page import card_figures, render, terminal_table
from ssd_lite.stages.pages.rounds_section import shows_rounds
from ssd_lite.stages.pages.words import set_line
from ssd_lite.stages.report_findings import Findings, read_findings, read_numbers


def report(run: RunFolder) -> dict[str, Any]:
    """Write report.html and the card of merged/, or say what was done before.

    The summary has `report`, the page's path inside the run, and `verdict`, its sentence. Raises UserError where the
    run is not evaluated or the page cannot be written.
    """
    done = run.done("report")
    if done is not None and run.report.is_file() and _shows_all(run):
        return done
    run.require("evaluate")
    started = time.monotonic()
    findings = read_findings(run)
    page = render(run, findings)
    write_text(run.report, page)
    write_card(run, card_figures(findings), verdict_words(findings))
    summary = {"report": run.report.name, "verdict": str(findings.comparison["sentence"])}
    run.finish("report", summary, time.monotonic() - started)
    return summary


def verdict_words(findings: Findings) -> str:
    """The verdict for a card: its sentence, over which problems, and what the guard saw."""
    guard = [f"{entry['name']}: {entry['sentence']}" for entry in findings.summary("evaluate").get("guard", [])]
    words = [f"{findings.comparison['sentence']} {set_line(findings.arms['base'])}."]
    return " ".join([*words, *(f"Guard {line}" for line in guard)])


def _shows_all(run: RunFolder) -> bool:
    """False where something the page shows is younger than the page."""
    return shows_diagnosis(run.path, run.report) and shows_rounds(run.path, run.report)


def table(run: RunFolder) -> str:
    """Base against tuned as plain text for a terminal, with the verdict's sentence below. Needs `evaluate`."""
    return terminal_table(read_numbers(run))
