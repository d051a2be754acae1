"""Distinct n-grams and self-BLEU against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from ssd_lite.stages.diversity import MOST_COMPLETIONS, distinct, self_bleu, words


def test_words_are_words_and_single_signs() -> None:
    assert words("def f(x_1):\n    return x+2") == ["def", "f", "(", "x_1", ")", ":", "return", "x", "+", "2"]


def test_distinct_counts_over_all_texts_together() -> None:
    assert distinct(["a b a", "a c"], 1) == pytest.approx(3 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a", "b"], 2) is None
    assert distinct(["a b c d"], 1) == 1.0


def test_self_bleu_of_equal_and_of_unlike_texts() -> None:
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d e", "f g h i j"]) == 0.0
    assert self_bleu(["a b c"]) is None
    assert self_bleu(["", " ", "a"]) is None


def test_self_bleu_by_hand() -> None:
    """Five words each, the last ones different: 4 of 5 words match, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples."""
    wanted = math.exp((math.log(4 / 5) + math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2)) / 4)
    assert self_bleu(["a b c d x", "a b c d y"]) == pytest.approx(wanted)


def test_a_short_text_pays_for_its_brevity_and_a_long_one_for_what_has_no_match() -> None:
    """ "a b c d" against "a b c d e f g h": all its n-grams match, exp(1 - 8/4); the other way 4/8, 3/7, 2/6, 1/5."""
    short = math.exp(1 - 8 / 4)
    long = math.exp((math.log(4 / 8) + math.log(3 / 7) + math.log(2 / 6) + math.log(1 / 5)) / 4)
    assert self_bleu(["a b c d", "a b c d e f g h"]) == pytest.approx((short + long) / 2)


def test_a_precision_without_a_match_counts_half_a_match() -> None:
    """ "a b c d" against "d c b a": every word matches and no pair does."""
    wanted = math.exp((math.log(1) + math.log(0.5 / 3) + math.log(0.5 / 2) + math.log(0.5 / 1)) / 4)
    assert self_bleu(["a b c d", "d c b a"]) == pytest.approx(wanted)


def test_more_completions_than_the_bound_are_left_out() -> None:
    alike = ["a b c d e"] * MOST_COMPLETIONS
    assert self_bleu([*alike, "v w x y z"]) == pytest.approx(1.0)
