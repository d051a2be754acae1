"""The maths of the plots, and that what they draw is where it belongs."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from ssd_lite.stages.pages.svg_plots import (
    Axis,
    Point,
    Rate,
    bin_edges,
    course,
    curve,
    histogram,
    intervals,
    running_mean,
    shares,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 256, [50, 100, 150, 200, 250]),
        (0.93, 1.02, [0.94, 0.96, 0.98, 1.0, 1.02]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_stay_few_over_many_sizes() -> None:
    for exponent in range(-9, 10):
        for factor in (1, 1.7, 3.3, 9.9):
            found = ticks(0, factor * 10.0**exponent)
            assert 3 <= len(found) <= 9
            assert found[-1] <= factor * 10.0**exponent * 1.0001


def test_bins_cover_both_series_and_shares_sum_to_one() -> None:
    series = {"base": [0.0, 1.5, 2.0, 10.0], "tuned": [4.0, 12.0]}
    edges = bin_edges(series, 4)
    assert edges == [0, 3, 6, 9, 12]
    assert shares(series["base"], edges) == [0.75, 0, 0, 0.25]
    assert shares(series["tuned"], edges) == [0, 0.5, 0, 0.5]  # the right edge belongs to the last bin


def test_bins_of_one_value_of_none_and_of_what_is_no_number() -> None:
    assert bin_edges({"a": [7, 7]}) == [6.5, 7.5]
    assert shares([7, 7], [6.5, 7.5]) == [1.0]
    assert bin_edges({"a": [], "b": []}) == [0, 1]
    assert shares([], [0, 1]) == [0]
    assert bin_edges({"a": [0.3]}) == [-0.2, 0.8]
    assert bin_edges({"a": [math.nan, 1, math.inf, 2.5, 3]}, 2) == [1, 2, 3]
    assert shares([math.nan, 1, 3], [1, 2, 3]) == [0.5, 0.5]


def test_whole_numbers_get_whole_bins() -> None:
    assert bin_edges({"a": [3], "b": [5]}, 24) == [2.5, 3.5, 4.5, 5.5]
    edges = bin_edges({"a": list(range(1, 257))}, 24)
    assert edges[0] == 0.5
    assert 256 < edges[-1] < 267
    assert {b - a for a, b in itertools.pairwise(edges)} == {11}
    flat = shares(list(range(1, 254)), edges)[:23]
    assert max(flat) == min(flat)  # a flat law looks flat


def test_a_histogram_fills_its_frame() -> None:
    """A first bin of one quarter and a last of three: the higher one touches the top, the lower one a third of it."""
    drawing = histogram({"base": [0, 0.7, 0.7, 0.7]}, "t", "x")
    heights = [float(y) for y in re.findall(r"V([\d.]+)H", drawing)]
    floor, top = max(heights), min(heights)
    assert top == 12
    assert (floor - heights[0]) / (floor - top) == pytest.approx(1 / 3, abs=0.01)
    assert len(heights) == 24


def test_a_curve_maps_its_ends_and_draws_each_point() -> None:
    drawing = curve([(1, 2.0), (2, 1.0), (3, 1.5)], "t", "x", "y")
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]+)"', drawing)[0].split()]
    assert [x for x, _ in points] == [48, 238, 428]
    assert points[0][1] < points[2][1] < points[1][1]  # a higher loss is drawn higher up
    assert drawing.count("<circle") == 3


def test_a_long_curve_gets_its_running_mean() -> None:
    drawing = curve([(n, n % 2) for n in range(200)], "t", "x", "y")
    assert drawing.count("<polyline") == 2
    assert drawing.count("<circle") == 0


def test_a_curve_of_one_point_of_none_and_of_what_is_no_number() -> None:
    assert curve([], "t", "x", "y") == ""
    assert curve([(1, math.nan)], "t", "x", "y") == ""
    for points in ([(1, 0.0)], [(5, 2.0), (6, math.inf)]):
        assert "nan" not in curve(points, "t", "x", "y")
        assert "inf" not in curve(points, "t", "x", "y")


def test_the_running_mean_keeps_a_constant_and_the_ends() -> None:
    assert running_mean([2.0] * 7, 4) == [2.0] * 7
    assert running_mean([0, 3, 6], 2) == [1.5, 3, 4.5]
    assert running_mean([1, 2], 0) == [1, 2]


def test_intervals_stand_in_their_rows() -> None:
    rates = [Rate("easy", "base", 0.5, 0.25, 0.75), Rate("easy", "tuned", 1, 1, 1), Rate("hard", "tuned", 0, 0, 0.1)]
    drawing = intervals(rates, "t", "x")
    lines = [
        [float(n) for n in found]
        for found in re.findall(r'whisker \w+" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)"', drawing)
    ]
    (a, b, _), (c, d, _), (e, _, _) = lines
    middle = float(re.findall(r'cx="([\d.]+)"', drawing)[0])
    assert middle == pytest.approx((a + b) / 2, abs=0.1)
    assert c == d > b
    assert e < a
    assert [y for _, _, y in lines] == sorted({y for _, _, y in lines})  # no two on one line


def test_a_course_stands_above_its_names() -> None:
    points = [Point("base", 40, 30, 50), Point("1", 60, 50, 70), Point("2", 20, 0, 30)]
    drawing = course(points, "t", "round", "pass@1 in %")
    whiskers = re.findall(r'whisker (\w+)" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', drawing)
    assert [found[0] for found in whiskers] == ["base", "tuned", "tuned"]
    places = {name: float(x) for x, name in re.findall(r'<text x="([\d.]+)" y="218" [^>]*>([^<]+)<', drawing)}
    assert [float(found[1]) for found in whiskers] == [places["base"], places["1"], places["2"]]
    assert all(left == right for _, left, right, _, _ in whiskers)
    lows, highs = [float(found[3]) for found in whiskers], [float(found[4]) for found in whiskers]
    assert lows[2] == 202  # nothing is negative, so the axis starts at 0
    assert lows[1] == highs[0]  # both are 50
    assert [low > high for low, high in zip(lows, highs, strict=True)] == [True] * 3
    line = [float(pair.split(",")[1]) for pair in re.findall(r'polyline [^>]*points="([^"]+)"', drawing)[0].split()]
    middle = float(re.findall(r'<circle class="dot base" cx="[\d.]+" cy="([\d.]+)"', drawing)[0])
    assert line[0] == middle == pytest.approx((lows[0] + highs[0]) / 2, abs=0.1)


def test_a_course_of_none_of_equals_and_of_many() -> None:
    assert course([], "t", "x", "y") == ""
    assert "nan" not in course([Point("base", 0, 0, 0), Point("1", 0, 0, 0)], "t", "x", "y")
    many = course([Point(str(n), n, n - 1, n + 1) for n in range(30)], "t", "x", "y")
    names = re.findall(r'y="218" [^>]*>([^<]+)<', many)
    assert names == [str(n) for n in range(0, 30, 3)]
    assert many.count("whisker") == 30


def test_an_axis_is_linear() -> None:
    axis = Axis(10, 20, 100, 0)
    assert [axis.at(x) for x in (10, 15, 20)] == [100, 50, 0]


@pytest.mark.parametrize("name", ['<b>"x"&', "plain"])
def test_names_are_escaped_and_the_drawing_is_well_formed(name: str) -> None:
    for drawing in (
        histogram({"base": [1, 2], "tuned": [2, 3]}, name, name),
        curve([(1, 1), (2, 2)], name, name, name),
        intervals([Rate(name, "base", 0.5, 0.4, 0.6)], name, name),
        course([Point(name, 0.5, 0.4, 0.6)], name, name, name),
    ):
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-label") == name
        assert root[0].text == name
        assert root.get("role") == "img"
