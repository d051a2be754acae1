"""The report's section on the terms of the loss (arXiv 2604.01193, Eq. 4), where training logged them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssd_lite.stages.pages import svg_plots
from ssd_lite.stages.pages.html import figure, paragraph, section

_TERMS = {
    "kept": ("Kept(S)", "share of the student's mass that lies on the teacher's survivors"),
    "support_compression": ("support compression", "−log Kept(S), in nats"),
    "reshaping": ("reshaping", "(1−T)·H of order 1/T inside the support, in nats"),
    "alignment": ("alignment", "T·KL(q ‖ p_T) inside the support, in nats"),
}


def terms(steps: Sequence[Mapping[str, Any]]) -> str:
    """One small plot a term, per trained token; empty where the laws of the samples were not kept."""
    logged = [step for step in steps if "expected_loss" in step]
    if not logged:
        return ""
    drawings = [_figure(logged, key, name, meaning) for key, (name, meaning) in _TERMS.items()]
    first, last = logged[0], logged[-1]
    note = (
        "The mean of the loss over what the teacher could have drawn, split into its terms; with T·H(q), which no "
        f"training changes, they add up. From the first to the last step it went from {first['expected_loss']:.3f} to "
        f"{last['expected_loss']:.3f} nats; {last['target_entropy']:.3f} are T·H(q) of the last step's tokens."
    )
    return section("What the loss is made of", paragraph(note), '<div class="plots">', *drawings, "</div>")


def _figure(steps: Sequence[Mapping[str, Any]], key: str, name: str, meaning: str) -> str:
    points = [(float(step["step"]), float(step[key])) for step in steps]
    return figure(
        svg_plots.curve(points, f"{name} over {len(points)} steps", "optimiser step", name), f"{name}: {meaning}."
    )
