"""The measures of a diagnosis on positions whose numbers can be written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ssd_lite.engines.scoring.measures import KINDS, along, between, kinds, of_model
from ssd_lite.engines.scoring.position_facts import Facts, read_block
from ssd_lite.records import SamplingSettings

# Heads of a toy of 16 tokens; a geometric tail over the other tokens.
ROOT, FORK, LOCK = (0.329, 0.200, 0.190, 0.126), (0.280, 0.148, 0.144, 0.140), (0.750, 0.055, 0.050, 0.037)
LAW = SamplingSettings(1.0, 3, 1.0, 0.0, 1)


def position(head: tuple[float, ...], ratio: float = 0.5, tokens: int = 16) -> np.ndarray:
    tail = ratio ** np.arange(tokens - len(head))
    return np.log(np.concatenate([head, (1 - sum(head)) * tail / tail.sum()])).astype(np.float32)


def facts_of(rows: list[np.ndarray], laws=(LAW,), ask=None, tokens=None) -> Facts:
    drawn = np.zeros(len(rows), dtype=np.int64) if tokens is None else np.asarray(tokens)
    return read_block(np.stack(rows), drawn, np.arange(len(rows)), laws, ask)


def test_kinds_of_the_toy_and_of_the_rest() -> None:
    settled, flat = position((0.995,)), position((0.09,), ratio=1.0)
    favourite = position((0.6,), ratio=0.99)
    rows = [position(ROOT), position(FORK), position(LOCK, 0.7), settled, flat, favourite]
    assert [KINDS[number] for number in kinds(facts_of(rows))] == [
        *("fork", "fork", "lock", "settled", "diffuse", "diffuse")
    ]


def test_means_of_a_lock_and_a_fork() -> None:
    rows = [position(FORK), position(LOCK, 0.7)]
    curve = SamplingSettings(0.5, 2, 1.0, 0.0, 1)
    found = of_model(facts_of(rows, (LAW, curve), tokens=[0, 5]), (LAW, curve), {"train": [1]})
    assert found["positions"] == 2
    assert found["tail"] == pytest.approx(1 - (0.572 + 0.855) / 2, rel=1e-4)
    assert found["tail"] == found["tail_at_1"]  # the law's temperature is 1
    assert found["minus_log_kept"] == pytest.approx(-(np.log(0.572) + np.log(0.855)) / 2, rel=1e-4)
    assert found["survivors"] == 3
    assert found["kinds"] == {"settled": 0.0, "lock": 0.5, "fork": 0.5, "diffuse": 0.0}
    assert found["drawn_first"] == 0.5
    assert found["mass_by_rank"][:2] == pytest.approx([(0.28 + 0.75) / 2, (0.148 + 0.055) / 2], rel=1e-4)
    assert (found["locks_closed"], found["forks_cut"]) == (0.0, 1.0)  # top-k 3 of four tokens above 10 %
    row = found["curves"]["train"][0]
    squares = [np.exp(2 * one.astype(np.float64)) for one in rows]
    kept = np.mean([(np.sort(s)[-2:]).sum() / s.sum() for s in squares])
    assert (row["temperature"], row["survivors"]) == (0.5, 2)
    assert row["tail"] == pytest.approx(1 - kept, rel=1e-3)


def test_locks_are_closed_where_the_nucleus_holds_one_token() -> None:
    law = SamplingSettings(1.0, 0, 0.7, 0.0, 1)
    found = of_model(facts_of([position(LOCK, 0.7), position(LOCK, 0.7)], (law,)), (law,))
    assert found["locks_closed"] == 1.0
    assert found["forks_cut"] is None  # there is no fork


def test_quarters_follow_the_place_in_the_completion() -> None:
    rows = [position((0.97,))] * 4 + [position(FORK)] * 4
    quarters = along([facts_of(rows)], [8])
    assert quarters[0] == quarters[1] < quarters[2] == quarters[3]
    assert along([facts_of(rows[:1])], [1]) == [quarters[0], None, None, None]


def pair(base_rows: list[np.ndarray], tuned_rows: list[np.ndarray]) -> dict:
    base = facts_of(base_rows)
    return between(base, facts_of(tuned_rows, ask=base.top_ids))


def test_equal_models_have_no_difference() -> None:
    rows = [position(FORK), position(LOCK, 0.7), position(ROOT)]
    found = pair(rows, rows)
    assert (found["swaps"], found["rank_agreement"]) == (0.0, 1.0)
    assert found["kept"]["base"] == found["kept"]["tuned"]
    assert found["locks"]["sharpened"] == 0.0
    assert (found["locks"]["count"], found["forks"]["count"], found["forks"]["kept"]) == (1, 2, 1.0)
    assert found["mass_by_base_rank"][0] == pytest.approx((0.28 + 0.75 + 0.329) / 3, rel=1e-4)


def test_a_sharpened_lock_a_lost_fork_and_a_swap() -> None:
    """The lock's first token gains; one fork collapses onto the base's second token, the other stays."""
    sharp, collapsed = position((0.9, 0.04), 0.7), np.roll(position((0.9, 0.05)), 1)
    found = pair([position(LOCK, 0.7), position(FORK), position(ROOT)], [sharp, collapsed, position(ROOT)])
    assert found["swaps"] == pytest.approx(1 / 3, rel=1e-4)
    assert found["swaps_by_kind"] == {"settled": None, "lock": 0.0, "fork": 0.5, "diffuse": None}
    assert found["locks"]["sharpened"] == 1.0
    assert found["locks"]["first_tuned"] == pytest.approx(0.9, rel=1e-4)
    assert found["forks"]["kept"] == 0.5
    assert found["forks"]["entropy_tuned"] < found["forks"]["entropy_base"]


def test_reversed_ranks_are_the_opposite_and_kept_follows_the_base() -> None:
    rising = np.log(np.arange(1, 21) / 210).astype(np.float32)
    found = pair([rising[::-1]], [rising])
    assert found["rank_agreement"] == pytest.approx(-1.0)
    assert found["swaps"] == 1.0
    assert found["kept"] == {"base": pytest.approx(57 / 210, rel=1e-4), "tuned": pytest.approx(6 / 210, rel=1e-4)}


def test_other_positions_are_refused() -> None:
    base = facts_of([position(FORK)] * 2)
    with pytest.raises(ValueError, match="same positions"):
        between(base, facts_of([position(FORK)], ask=base.top_ids[:1]))
    with pytest.raises(ValueError, match="base's top ids"):
        between(base, facts_of([position(FORK)] * 2))
