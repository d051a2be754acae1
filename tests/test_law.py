"""The sampling law: exact against a full sort, equal to transformers' warpers, and draws that follow it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ssd_lite.engines.sampling.law import Survivors, Uniforms, derived_seed, survivors, top_k
from ssd_lite.records import SamplingSettings

Array = npt.NDArray[np.float32]


def settings(temperature: float = 1.0, k: int = 20, p: float = 0.8) -> SamplingSettings:
    return SamplingSettings(temperature, k, p, 0.0, 1)


def random_logits(rows: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> Array:
    return np.random.default_rng(seed).normal(0, spread, (rows, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("vocabulary", [1, 5, 64, 1000, 6400, 49152, 49153, 49215, 100_277])
@pytest.mark.parametrize("k", [1, 2, 20, 50])
def test_top_k_equals_a_full_sort(vocabulary: int, k: int) -> None:
    k = min(k, vocabulary)
    logits = random_logits(7, vocabulary, seed=vocabulary + k)
    ids, values = top_k(logits, k)
    order = np.argsort(-logits, axis=1)[:, :k]
    assert np.array_equal(values, np.take_along_axis(logits, order, axis=1))
    assert np.array_equal(ids, order)
    assert ids.dtype == np.int64


@pytest.mark.parametrize("place", ["first", "last", "one block", "tail"])
def test_top_k_finds_its_tokens_wherever_they_lie(place: str) -> None:
    vocabulary, k = 49_215, 20
    blocks = vocabulary // 64
    logits = random_logits(1, vocabulary, spread=0.1)
    where = {
        "first": np.arange(k),
        "last": np.arange(vocabulary - k, vocabulary),
        "one block": np.arange(k) * blocks + 3,
        "tail": np.arange(64 * blocks, vocabulary)[:k],
    }[place]
    logits[0, where] = 10 + np.arange(len(where))
    ids, _ = top_k(logits, len(where))
    assert ids[0].tolist() == where[::-1].tolist()


@pytest.mark.parametrize("vocabulary", [100, 49_153])
def test_equal_logits_give_k_different_tokens_of_the_largest_values(vocabulary: int) -> None:
    logits = np.round(random_logits(5, vocabulary), 0).astype(np.float32)
    ids, values = top_k(logits, 20)
    assert np.array_equal(values, -np.sort(-logits, axis=1)[:, :20])
    assert np.array_equal(np.take_along_axis(logits, ids, axis=1), values)
    assert all(len(set(row)) == 20 for row in ids.tolist())
    flat = survivors(np.zeros((1, vocabulary), np.float32), settings(k=20, p=1.0))
    assert np.allclose(flat.probs, 1 / 20)


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.full((1, 5000), -np.inf, np.float32)
    logits[0, [7, 4999]] = [1.0, 1.0]
    law = survivors(logits, settings(k=20, p=1.0))
    assert set(law.ids[0][law.probs[0] > 0]) == {7, 4999}
    assert {int(law.draw([u])[0]) for u in (0.0, 0.3, 0.6, np.nextafter(1, 0))} == {7, 4999}


def test_no_top_k_keeps_the_whole_vocabulary() -> None:
    logits = random_logits(3, 1001)
    law = survivors(logits, settings(1.3, 0, 1.0))
    wanted = np.exp(logits.astype(np.float64) / 1.3)
    wanted /= wanted.sum(axis=1, keepdims=True)
    found = np.zeros_like(wanted)
    np.put_along_axis(found, law.ids, law.probs, axis=1)
    assert np.allclose(found, wanted, atol=1e-12)


def test_a_k_above_the_vocabulary_is_the_vocabulary() -> None:
    assert survivors(random_logits(2, 5), settings(k=20, p=1.0)).ids.shape == (2, 5)


def test_the_nucleus_is_taken_inside_the_renormalised_top_k() -> None:
    """Of .5 .2 .1 .1 .1 the top 2 are .714 and .286: 0.69 keeps one of them, of the whole law two."""
    logits = np.log(np.array([[0.1, 0.5, 0.1, 0.2, 0.1]], np.float32))
    law = survivors(logits, settings(1.0, 2, 0.69))
    assert law.ids[0].tolist() == [1, 3]
    assert law.probs[0].tolist() == [1.0, 0.0]
    assert (survivors(logits, settings(1.0, 0, 0.69)).probs > 0).sum() == 2
    assert (survivors(logits, settings(1.0, 2, 0.72)).probs > 0).sum() == 2


def test_a_tiny_nucleus_keeps_one_token() -> None:
    law = survivors(random_logits(4, 1000), settings(1.0, 20, 1e-9))
    assert np.array_equal(law.probs[:, 0], np.ones(4))
    assert law.entropies().tolist() == [0.0] * 4


def test_the_law_is_the_one_of_transformers_warpers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    laws = [(1.6, 20, 0.8), (0.6, 20, 0.95), (1.1, 0, 0.9), (0.9, 50, 1.0), (2.0, 5, 0.5)]
    rows, checked = 100, 0
    for number, (temperature, k, p) in enumerate(laws):
        logits = random_logits(rows, 3001, seed=number, spread=1.0 + number)
        chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if k:
            chain.append(TopKLogitsWarper(k))
        if p < 1.0:
            chain.append(TopPLogitsWarper(p))
        theirs = torch.softmax(chain(None, torch.tensor(logits, dtype=torch.float64)), dim=-1).numpy()
        law = survivors(logits, settings(temperature, k, p))
        ours = np.zeros_like(theirs)
        np.put_along_axis(ours, law.ids, law.probs, axis=1)
        assert np.array_equal(ours > 0, theirs > 0)
        assert np.abs(ours - theirs).max() < 1e-6
        checked += rows
    assert checked == 500


def test_entropies() -> None:
    law = Survivors(np.array([[1, 2, 3], [1, 2, 3]]), np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]))
    assert law.entropies() == pytest.approx([1.5 * np.log(2), 0.0])


def test_a_draw_takes_the_token_whose_mass_holds_the_number() -> None:
    law = Survivors(np.array([[7, 8, 9]] * 6), np.array([[0.5, 0.3, 0.2]] * 4 + [[0.5, 0.5, 0.0]] * 2))
    drawn = law.draw([0.0, 0.49, 0.51, 0.81, np.nextafter(1, 0), 0.5])
    assert drawn.tolist() == [7, 7, 8, 9, 8, 8]


def test_draws_follow_the_law() -> None:
    """Chi-square of 20,000 draws of five laws; the bound is the 99.9 % point by Wilson and Hilferty."""
    for seed in range(5):
        law = survivors(random_logits(1, 5000, seed, spread=1.0), settings(1.2, 20, 0.9))
        stream = Uniforms(seed)
        draws = 20_000
        repeated = Survivors(np.repeat(law.ids, draws, 0), np.repeat(law.probs, draws, 0))
        drawn = repeated.draw([next(stream) for _ in range(draws)])
        alive = law.probs[0] > 0
        seen = np.array([(drawn == token).sum() for token in law.ids[0][alive]])
        assert seen.sum() == draws
        expected = law.probs[0][alive] * draws
        degrees = len(expected) - 1
        bound = degrees * (1 - 2 / (9 * degrees) + 3.09 * np.sqrt(2 / (9 * degrees))) ** 3
        assert ((seen - expected) ** 2 / expected).sum() < bound


def test_one_seed_one_stream() -> None:
    def first(seed: int) -> list[float]:
        stream = Uniforms(seed)
        return [next(stream) for _ in range(100)]

    assert first(5) == first(5)
    assert first(5) != first(6)
    near = np.array([first(seed) for seed in range(200)])
    assert abs(np.corrcoef(near[:-1, 0], near[1:, 0])[0, 1]) < 0.25
    assert near.min() >= 0.0
    assert near.max() < 1.0
    assert abs(near.mean() - 0.5) < 0.01


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    logits = random_logits(9, 49_153)
    together = survivors(logits, settings()).draw([0.37] * 9)
    alone = [int(survivors(logits[row : row + 1], settings()).draw([0.37])[0]) for row in range(9)]
    assert together.tolist() == alone


def test_a_derived_seed_depends_on_seed_problem_and_index_alone() -> None:
    keys = [(seed, problem, index) for seed in (0, 1) for problem in ("a", "b", "a1", "é") for index in (0, 1, 11)]
    forward = {key: derived_seed(*key) for key in keys}
    backward = {key: derived_seed(*key) for key in reversed(keys)}
    assert forward == backward
    assert len(set(forward.values())) == len(keys)
    assert all(0 <= seed < 2**63 for seed in forward.values())
    # A fixed value: runs that were started with an older version must go on with the same draws.
    assert derived_seed(0, "a", 0) == 5377369291220743188


def test_min_p_keeps_what_is_near_the_likeliest_after_the_nucleus() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.12, 0.08]]))
    settings = SamplingSettings(temperature=1.0, top_k=0, top_p=0.9, min_p=0.3, max_new_tokens=1)
    # The nucleus of 0.9 keeps three; 0.12 is below 0.3 * 0.5, so two are left: 0.5 and 0.3, renormalised.
    assert survivors(logits, settings).probs.tolist() == [pytest.approx([0.625, 0.375, 0.0, 0.0])]


def test_min_p_off_changes_nothing() -> None:
    logits = np.random.default_rng(3).normal(size=(5, 50))
    off = survivors(logits, SamplingSettings(0.9, 20, 0.9, 0.0, 1))
    tiny = survivors(logits, SamplingSettings(0.9, 20, 0.9, 1e-9, 1))
    assert np.array_equal(off.ids, tiny.ids)
    assert np.allclose(off.probs, tiny.probs, atol=1e-12)
