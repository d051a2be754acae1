"""Plots of a diagnosis as inline SVG: lines of base and tuned over ranks or temperatures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ssd_lite.stages.pages.svg_plots import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, ticks

HEIGHT = 190
Points = Sequence[tuple[float, float]]
# Told apart without colour too.
_DASH = {"base": ' stroke-dasharray="5 3"'}


def lines(
    series: Mapping[str, Points],
    title: str,
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = False,
    mark: tuple[float, str] | None = None,
) -> str:
    """A line for each of `series`, named by its style (base, tuned); empty without a point.

    `logarithmic` draws log10 of the values, labelled with the values, and leaves out those that are not above 0. `mark`
    is a value of x with its name, drawn upright.
    """
    drawn = {name: [(x, y) for x, y in one if y > 0 or not logarithmic] for name, one in series.items()}
    every = [point for one in drawn.values() for point in one]
    if not every:
        return ""
    heights = [math.log10(y) if logarithmic else y for _, y in every]
    xs = [x for x, _ in every]
    low, high = (
        (math.floor(min(heights)), math.ceil(max(heights))) if logarithmic else (min(0.0, *heights), max(heights))
    )
    x = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    y = Axis(low, high if high > low else low + 1, TOP + HEIGHT, TOP)
    body = _rows(y, logarithmic) + _columns(x) + _names(x, y, x_label, y_label)
    if mark is not None and x.low <= mark[0] <= x.high:
        body += _upright(x, y, *mark)
    for name, points in drawn.items():
        path = " ".join(f"{_n(x.at(a))},{_n(y.at(math.log10(b) if logarithmic else b))}" for a, b in points)
        style = escape(name)
        body += f'<polyline class="line {style}"{_DASH.get(name, "")} points="{path}"/>'
    label = escape(title)
    size = f"0 0 {WIDTH} {TOP + HEIGHT + BOTTOM}"
    return f'<svg viewBox="{size}" role="img" aria-label="{label}"><title>{label}</title>{body}</svg>'


def _rows(y: Axis, logarithmic: bool) -> str:
    wanted = [float(power) for power in range(int(y.low), int(y.high) + 1)] if logarithmic else ticks(y.low, y.high, 4)
    step = math.ceil(len(wanted) / 6)
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_n(y.at(tick))}" y2="{_n(y.at(tick))}"/>'
        f'<text x="{LEFT - 6}" y="{_n(y.at(tick) + 4)}" text-anchor="end">{10**tick if logarithmic else tick:g}</text>'
        for tick in wanted[::step]
    )


def _columns(x: Axis) -> str:
    foot = TOP + HEIGHT
    numbers = "".join(
        f'<text x="{_n(x.at(tick))}" y="{foot + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks(x.low, x.high)
    )
    return numbers + f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>'


def _names(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    across, along = _n((x.start + x.end) / 2), _n((y.start + y.end) / 2)
    return (
        f'<text class="name" x="{across}" y="{TOP + HEIGHT + 35}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="name" x="12" y="{along}" text-anchor="middle" transform="rotate(-90 12 {along})">'
        f"{escape(y_label)}</text>"
    )


def _upright(x: Axis, y: Axis, value: float, name: str) -> str:
    at = _n(x.at(value))
    left = x.at(value) > (x.start + x.end) / 2
    side = f'x="{_n(x.at(value) + (-5 if left else 5))}" text-anchor="{"end" if left else "start"}"'
    return (
        f'<line class="axis" stroke-dasharray="2 3" x1="{at}" x2="{at}" y1="{_n(y.end)}" y2="{_n(y.start)}"/>'
        f'<text {side} y="{_n(y.end + 10)}">{escape(name)}</text>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
