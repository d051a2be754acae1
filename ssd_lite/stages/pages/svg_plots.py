"""Plots as inline SVG: histograms of two arms, curves, and values with their intervals. Colours come from CSS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# One unit is about one CSS pixel on a phone; the font of 12 stays readable there.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 48, 12, 12, 44
_PLOT_HEIGHT = 190


@dataclass(frozen=True)
class Rate:
    """A rate in [0, 1] with its interval, drawn in the row `row` in the style `series`."""

    row: str
    series: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A value with its interval, drawn above its name."""

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """A linear map from [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda one: abs(math.log(one / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def bin_edges(series: Mapping[str, Sequence[float]], count: int = 24) -> list[float]:
    """Edges at even distances over all finite values of all series, for at most `count` bins.

    Whole numbers get bins of a whole width around them, or the same law would look ragged; a single value gets one bin.
    """
    values = [value for one in series.values() for value in one if math.isfinite(value)]
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    if all(value == int(value) for value in values):
        width = math.ceil((high - low + 1) / count)
        return [low - 0.5 + width * index for index in range(math.ceil((high - low + 1) / width) + 1)]
    if low == high:
        return [low - 0.5, high + 0.5]
    return [low + (high - low) * index / count for index in range(count + 1)]


def shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Share of the finite values in each bin [edge, next edge); the last bin holds its right edge too. Sums to 1."""
    counts = [0] * (len(edges) - 1)
    width = (edges[-1] - edges[0]) / len(counts)
    finite = [value for value in values if math.isfinite(value)]
    for value in finite:
        counts[min(len(counts) - 1, max(0, int((value - edges[0]) / width)))] += 1
    return [count / len(finite) for count in counts] if finite else [0.0] * len(counts)


def histogram(series: Mapping[str, Sequence[float]], title: str, x_label: str) -> str:
    """Overlaid histograms; the height is each arm's own share in percent, so arms of different size compare."""
    edges = bin_edges(series)
    heights = {name: shares(values, edges) for name, values in series.items()}
    top = max((h for one in heights.values() for h in one), default=0) or 1.0
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = Axis(0, 100 * top, TOP + _PLOT_HEIGHT, TOP)
    body = _frame(x, y, x_label, "% of samples")
    for name, one in heights.items():
        path = f"M{_n(x.at(edges[0]))} {_n(y.at(0))}"
        for index, height in enumerate(one):
            path += f"V{_n(y.at(100 * height))}H{_n(x.at(edges[index + 1]))}"
        body += f'<path class="area {escape(name)}" d="{path}V{_n(y.at(0))}Z"/>'
    return _svg(body, TOP + _PLOT_HEIGHT + BOTTOM, title)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the `window` values around each; fewer at the ends."""
    half = window // 2
    parts = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def curve(points: Sequence[tuple[float, float]], title: str, x_label: str, y_label: str) -> str:
    """A line through points; above 40 of them also their running mean over a twentieth, with the points behind it."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = (max(ys) - min(ys)) * 0.06 or max(0.5, abs(ys[0]) * 0.1)
    right = max(xs) if max(xs) > min(xs) else min(xs) + 1
    x = Axis(min(xs), right, LEFT, WIDTH - RIGHT)
    y = Axis(min(ys) - margin, max(ys) + margin, TOP + _PLOT_HEIGHT, TOP)
    body = _frame(x, y, x_label, y_label, whole_x=True)
    many = len(points) > 40
    if many:
        body += f'<polyline class="line faint" points="{_points(xs, ys, x, y)}"/>'
        ys = running_mean(ys, len(ys) // 20)
    body += f'<polyline class="line tuned" points="{_points(xs, ys, x, y)}"/>'
    if not many:
        body += "".join(f'<circle class="dot tuned" cx="{_n(x.at(a))}" cy="{_n(y.at(b))}" r="2.5"/>' for a, b in points)
    return _svg(body, TOP + _PLOT_HEIGHT + BOTTOM, title)


def course(points: Sequence[Point], title: str, x_label: str, y_label: str) -> str:
    """Values with their intervals from left to right, joined by a thin line; the first is the base's.

    The y axis spans the intervals and no more, so it need not start at 0. Above 12 points not every name is written.
    """
    if not points:
        return ""
    low = min(min(point.low, point.mean) for point in points)
    high = max(max(point.high, point.mean) for point in points)
    margin = (high - low) * 0.06 or max(0.5, abs(low) * 0.1)
    bottom = max(0.0, low - margin) if low >= 0 else low - margin
    x = Axis(-0.5, len(points) - 0.5, LEFT + 10, WIDTH - RIGHT)  # numbers such as 0.015 are wide
    y = Axis(bottom, high + margin, TOP + _PLOT_HEIGHT, TOP)
    every = math.ceil(len(points) / 12)
    names = {float(place): point.name for place, point in enumerate(points) if place % every == 0}
    body = _frame(x, y, x_label, y_label, names=names)
    means = [point.mean for point in points]
    body += f'<polyline class="line faint" points="{_points(range(len(points)), means, x, y)}"/>'
    for place, point in enumerate(points):
        series, across = "tuned" if place else "base", _n(x.at(place))
        ends = f'y1="{_n(y.at(point.low))}" y2="{_n(y.at(point.high))}"'
        body += f'<line class="whisker {series}" x1="{across}" x2="{across}" {ends}/>'
        body += _mark(not place, series, x.at(place), y.at(point.mean))
    return _svg(body, TOP + _PLOT_HEIGHT + BOTTOM, title)


def intervals(rates: Sequence[Rate], title: str, x_label: str, *, left: int = 96) -> str:
    """Rates as points with their intervals on an axis from 0 to 100 %, the series of a row below each other.

    `left` is the width of the names of the rows.
    """
    rows = list(dict.fromkeys(rate.row for rate in rates))
    series = list(dict.fromkeys(rate.series for rate in rates))
    row_height = 18 * len(series) + 16
    bottom = TOP + row_height * len(rows)
    x = Axis(0, 1, left, WIDTH - RIGHT - 8)
    body = "".join(
        f'<line class="grid" x1="{_n(x.at(tick))}" x2="{_n(x.at(tick))}" y1="{TOP}" y2="{bottom}"/>'
        f'<text x="{_n(x.at(tick))}" y="{bottom + 16}" text-anchor="middle">{100 * tick:.0f} %</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    for number, row in enumerate(rows):
        middle = TOP + row_height * (number + 0.5)
        body += f'<text x="{left - 10}" y="{_n(middle + 4)}" text-anchor="end">{escape(row)}</text>'
    for rate in rates:
        beside = [one.series for one in rates if one.row == rate.row]
        slot = series.index(rate.series) if len(beside) > 1 else (len(series) - 1) / 2
        line = _n(TOP + row_height * rows.index(rate.row) + 17 + 18 * slot)
        name, ends = escape(rate.series), f'x1="{_n(x.at(rate.low))}" x2="{_n(x.at(rate.high))}"'
        body += f'<line class="whisker {name}" {ends} y1="{line}" y2="{line}"/>'
        body += _mark(rate.series == series[0], name, x.at(rate.mean), float(line))
    centre = _n((x.start + x.end) / 2)
    body += f'<text class="name" x="{centre}" y="{bottom + 35}" text-anchor="middle">{escape(x_label)}</text>'
    return _svg(body, bottom + BOTTOM, title)


def _mark(first: bool, name: str, x: float, y: float) -> str:
    """A circle for the first series and a diamond for the others: told apart without colour too."""
    if first:
        return f'<circle class="dot {name}" cx="{_n(x)}" cy="{_n(y)}" r="4.5"/>'
    path = f"M{_n(x - 5.5)} {_n(y)}l5.5 -5.5l5.5 5.5l-5.5 5.5Z"
    return f'<path class="dot {name}" d="{path}"/>'


def _frame(
    x: Axis, y: Axis, x_label: str, y_label: str, *, whole_x: bool = False, names: Mapping[float, str] | None = None
) -> str:
    """Grid lines, numbers and names of both axes; `names` stand at their places on x instead of numbers."""
    parts = [
        f'<line class="grid" x1="{_n(x.start)}" x2="{_n(x.end)}" y1="{_n(y.at(tick))}" y2="{_n(y.at(tick))}"/>'
        f'<text x="{_n(x.start - 6)}" y="{_n(y.at(tick) + 4)}" text-anchor="end">{tick:g}</text>'
        for tick in ticks(y.low, y.high, 4)
    ]
    if names is None:
        names = {tick: f"{tick:g}" for tick in ticks(x.low, x.high) if not whole_x or tick == round(tick)}
    parts += [
        f'<text x="{_n(x.at(place))}" y="{_n(y.start + 16)}" text-anchor="middle">{escape(name)}</text>'
        for place, name in names.items()
    ]
    parts.append(f'<line class="axis" x1="{_n(x.start)}" x2="{_n(x.end)}" y1="{_n(y.start)}" y2="{_n(y.start)}"/>')
    middle = _n((x.start + x.end) / 2)
    parts.append(
        f'<text class="name" x="{middle}" y="{_n(y.start + 35)}" text-anchor="middle">{escape(x_label)}</text>'
    )
    upright = f'transform="rotate(-90 12 {_n((y.start + y.end) / 2)})"'
    parts.append(
        f'<text class="name" x="12" y="{_n((y.start + y.end) / 2)}" text-anchor="middle" {upright}>'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _points(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> str:
    return " ".join(f"{_n(x.at(a))},{_n(y.at(b))}" for a, b in zip(xs, ys, strict=True))


def _svg(body: str, height: float, title: str) -> str:
    name = escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{name}"><title>{name}</title>{body}</svg>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
