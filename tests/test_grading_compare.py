"""Equality of values and outputs, as the grader judges it outside the sandbox."""

import collections
import enum
import math

import pytest

from ssd_lite.grading.compare import same, same_output
from ssd_lite.grading.inside import plain


class Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Honest(int):
    pass


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        True,
        None,
        "text",
        "\ud800",
        1.5,
        -0.0,
        2**64,
        -(7**3000),
        [1, [2, (3,)]],
        {"a": {1: {2, 3}}},
        b"\xff",
        3j,
    ],
)
def test_plain_values_survive_both_ways(value):
    back = plain.decode(plain.encode(value))
    assert back == value
    assert type(back) is type(value)
    assert same(plain.encode(value), value)


@pytest.mark.parametrize(
    ("value", "expected", "verdict"),
    [
        (3.0, 3, True),
        (True, 1, True),
        ("3", 3, False),
        ((1, 2), [1, 2], True),
        ([(1, 2)], [[1, 2]], True),
        ({1, 2}, [1, 2], False),
        (math.nan, math.nan, False),
        (Liar(0), 3, False),
        (Liar(3), 3, False),
        (Honest(3), 3, True),
        (Colour.RED, 1, True),
        (Point(1, 2), [1, 2], True),
        (collections.Counter("aab"), {"a": 2, "b": 1}, True),
        (collections.defaultdict(list, {1: [2]}), {1: [2]}, True),
        ({1: 2}, {"1": 2}, False),
        ({"b": 1, "a": [2]}, {"a": [2], "b": 1}, True),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ({1, 2, 3}, {3, 2, 1}, True),
        ({1, 2}, {1, 3}, False),
        ((i for i in [1]), [1], False),
        (object(), None, False),
    ],
)
def test_values_against_expected_ones(value, expected, verdict):
    assert same(plain.encode(value), expected) is verdict


def test_strict_tells_tuples_from_lists():
    assert not same(plain.encode((1, 2)), [1, 2], strict=True)
    assert same(plain.encode((1, [2])), (1, [2]), strict=True)


@pytest.mark.parametrize(
    "tree", [{"l": 5}, {"d": [[]]}, {"d": [[1]]}, {"x": 1}, {"t": 3}, {"s": {}}, {"d": [[{"d": [[]]}, 1]]}, {}]
)
@pytest.mark.parametrize("expected", [[1, 2], {"a": 1}, {1, 2}, 3, "x", (1,), frozenset({1})])
def test_trees_that_no_encoder_wrote_equal_nothing(tree, expected):
    assert not same(tree, expected)


def test_keys_that_collide_are_not_built():
    """200,000 whole numbers that hash alike: with one set of them this test would not end for minutes."""
    many = [(2**61 - 1) * number for number in range(1, 200_000)]
    assert not same({"d": [[{"f": [{"i": hex(one)} for one in many]}, 1]]}, {"a": 1})
    assert not same({"s": [{"t": many}]}, {(1, 2)})
    assert same(plain.encode({(1, frozenset({2})): 3}), {(1, frozenset({2})): 3})
    assert same(plain.encode({2**100}), {float(2**100)})


@pytest.mark.parametrize("word", ["1" * 40_000 + "x", "01" * 20_000 + "B", "9" * 40_000 + "e"])
def test_a_long_word_that_is_no_number_is_read_once(word):
    """Read again from each of its digits, this would not end for minutes."""
    assert not same_output(word.encode(), "3.0")
    assert not same_output(b"3.0", word)


def test_tolerance_is_for_floats_alone():
    assert same(plain.encode([0.1 + 0.2]), [0.3], tolerance=1e-6)
    assert not same(plain.encode([0.1 + 0.2]), [0.3])
    assert not same(plain.encode(10**9 + 1), 10**9, tolerance=1e-6)
    assert not same(plain.encode(math.inf), 1.0, tolerance=1e-6)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"t": 1, "l": 2},
        {"t": 5},
        {"d": [[1]]},
        {"d": [[[1], 2]]},
        {"s": [[1]]},
        {"i": "zz"},
        {"q": 1},
        {"o": "int"},
    ],
)
def test_a_forged_tree_equals_nothing(tree):
    for expected in (0, [], {}, set(), "", None, [1], {1: 2}, {1}):
        assert not same(tree, expected)


def test_a_tree_nested_too_deeply_equals_nothing():
    tree = 1
    for _ in range(100_000):
        tree = [tree]
    assert not same(tree, [1])


def test_colliding_keys_do_not_stall_the_grader():
    keys = [{"i": hex(i * (2**61 - 1))} for i in range(1, 20_000)]
    assert not same({"s": keys}, set(range(19_999)))


@pytest.mark.parametrize(
    ("output", "expected", "verdict"),
    [
        (b"3\n", "3", True),
        (b"\n3  \r\n\n", "3\n", True),
        (b"0.50", "0.5", True),
        (b"1  2", "1 2", True),
        (b"1\n2", "1 2", False),
        (b"YES", "Yes", False),
        (b"3\n3", "3", False),
        (b"1_0", "10", False),
        ("٣".encode(), "3", False),
        (b"nan", "5", False),
        (b"1e999999999", "1", False),
        (b"0.3333333", "0.333333333333", False),
        (b"\xff3", "3", False),
        (b"", "", True),
    ],
)
def test_outputs(output, expected, verdict):
    assert same_output(output, expected) is verdict
