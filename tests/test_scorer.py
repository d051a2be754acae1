"""Reading texts position by position: the facts against plain sums, both engines against each other and the sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssd_lite.engines.sampling.law import survivors
from ssd_lite.engines.scoring.position_facts import RANKS, Facts, joined, read_block
from ssd_lite.engines.scoring.score import score
from ssd_lite.engines.scoring.scorer import Text, spread_positions
from ssd_lite.errors import UserError
from ssd_lite.records import Prompt, SamplingSettings

LAWS = [
    SamplingSettings(1.6, 20, 0.8, 0.0, 1),
    SamplingSettings(0.6, 0, 0.95, 0.0, 1),
    SamplingSettings(1.0, 0, 1.0, 0.0, 1),
    SamplingSettings(1.3, 100, 1.0, 0.05, 1),
]


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (7, 5000)).astype(np.float32)


def test_facts_are_those_of_the_whole_vocabulary(logits) -> None:
    tokens = np.array([0, 4999, 3, 7, 11, 2, 1])
    ask = np.tile(np.arange(5), (7, 1))
    facts = read_block(logits, tokens, np.arange(7), LAWS, ask)
    exact = logits.astype(np.float64)
    p = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    rows = np.arange(7)
    assert facts.drawn == pytest.approx(np.log(p[rows, tokens]), abs=1e-5)
    assert facts.asked == pytest.approx(np.log(p[:, :5]), abs=1e-5)
    assert facts.entropy == pytest.approx(-(p * np.log(p)).sum(axis=1), rel=1e-5)
    assert (facts.drawn_rank == 1 + (p > p[rows, tokens][:, None]).sum(axis=1)).all()
    assert facts.top.shape == (7, RANKS)
    assert (facts.top_ids == np.argsort(-p, axis=1)[:, :RANKS]).all()
    assert facts.top == pytest.approx(np.log(-np.sort(-p, axis=1)[:, :RANKS]), abs=1e-5)
    for number, law in enumerate(LAWS):
        sampler = survivors(logits, law)
        tempered = p ** (1 / law.temperature)
        tempered /= tempered.sum(axis=1, keepdims=True)
        for row in rows:
            inside = sampler.ids[row][sampler.probs[row] > 0]
            assert facts.survivors[row, number] == len(inside)
            assert facts.kept[row, number] == pytest.approx(tempered[row, inside].sum(), abs=1e-5)
            assert facts.kept_at_1[row, number] == pytest.approx(p[row, inside].sum(), abs=1e-5)
        assert facts.law_entropy[:, number] == pytest.approx(sampler.entropies(), abs=1e-5)


def test_masked_tokens_give_numbers(logits) -> None:
    masked = logits.copy()
    masked[:, 2500:] = -np.inf
    facts = read_block(masked, np.arange(7), np.arange(7), LAWS)
    plain = read_block(logits[:, :2500], np.arange(7), np.arange(7), LAWS)
    assert np.isfinite(facts.entropy).all()
    assert facts.entropy == pytest.approx(plain.entropy, rel=1e-5)
    assert facts.kept[:, 0] == pytest.approx(plain.kept[:, 0], rel=1e-5)
    assert facts.asked.shape == (7, 0)


def test_a_vocabulary_smaller_than_the_ranks() -> None:
    facts = read_block(np.zeros((2, 5), dtype=np.float32), np.array([0, 1]), np.arange(2), LAWS)
    assert facts.top.shape == (2, 5)
    assert facts.entropy == pytest.approx(np.log(5))


def test_positions_are_spread_and_keep_the_first() -> None:
    assert spread_positions(3, 5).tolist() == [0, 1, 2]
    assert spread_positions(10, 4).tolist() == [0, 2, 5, 7]
    long = spread_positions(8191, 512)
    assert (len(long), long[0], len(set(long.tolist()))) == (512, 0, 512)
    assert long[-1] > 8100


def texts(vocabulary: int, lengths: list[tuple[int, int]], most: int = 512) -> list[Text]:
    draw = np.random.default_rng(1)
    ids = [[tuple(draw.integers(3, vocabulary, n).tolist()) for n in pair] for pair in lengths]
    return [Text(prompt, completion, spread_positions(len(completion), most)) for prompt, completion in ids]


def read(engine, model: Path, wanted: list[Text], laws=LAWS) -> list[Facts]:
    counted: list[int] = []
    found = dict(score(engine, model, wanted, laws, counted.append, threads=1))
    assert sum(counted) == sum(len(text.ids) for text in wanted)
    return [found[number] for number in range(len(wanted))]


def assert_alike(left: Facts, right: Facts, tolerance: float) -> None:
    assert (left.place == right.place).all()
    for name in ("drawn", "entropy", "asked", "top"):
        assert getattr(left, name) == pytest.approx(getattr(right, name), abs=tolerance), name
    # A support may end elsewhere where the nucleus ends within rounding of top_p; without top-p it may not.
    assert left.kept[:, 3] == pytest.approx(right.kept[:, 3], abs=tolerance)
    assert np.abs(left.kept[:, 0] - right.kept[:, 0]).mean() < 0.02


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_both_engines_read_the_same(kind: str, tmp_path, monkeypatch) -> None:
    """A random model in F32, texts of different lengths, pieces smaller than a text, some positions left out."""
    from tiny_models import cache_in, save_tiny

    from ssd_lite.engines.model_source import gguf_file
    from ssd_lite.engines.scoring import hf_scorer, llama_cpp_scorer

    folder = save_tiny(tmp_path / "m", kind)
    with cache_in(tmp_path / "cache"):
        gguf = gguf_file(folder, "f32")
    wanted = texts(1000, [(5, 40), (30, 3), (1, 1), (9, 25)], most=20)
    wanted = [Text(t.prompt_ids, t.completion_ids, t.positions, np.tile([5, 7], (len(t.positions), 1))) for t in wanted]
    whole = read("hf", folder, wanted)
    for module in (hf_scorer, llama_cpp_scorer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 1024 * 7)
    assert [len(facts) for facts in whole] == [20, 3, 1, 20]
    for left, right, other in zip(whole, read("hf", folder, wanted), read("llama_cpp", gguf, wanted), strict=True):
        assert_alike(left, right, 1e-4)
        assert_alike(left, other, 0.03)  # llama.cpp keeps keys and values in F16


def test_padding_and_neighbours_change_nothing(tmp_path) -> None:
    from tiny_models import save_tiny

    folder = save_tiny(tmp_path / "m")
    wanted = texts(1000, [(4, 6), (20, 30)])
    together, alone = read("hf", folder, wanted), read("hf", folder, wanted[:1])
    assert_alike(together[0], alone[0], 1e-4)


def test_the_first_position_is_what_follows_the_prompt(tmp_path) -> None:
    from tiny_models import hf_logits, save_tiny

    folder = save_tiny(tmp_path / "m")
    text = texts(1000, [(6, 4)])[0]
    facts = read("hf", folder, [text])[0]
    for position in range(4):
        before = list(text.prompt_ids + text.completion_ids[:position])
        expected = read_block(hf_logits(folder, before)[None], text.tokens[[position]], np.array([position]), LAWS)
        assert facts.drawn[position] == pytest.approx(expected.drawn[0], abs=1e-4)
        assert facts.top_ids[position, 0] == expected.top_ids[0, 0]


def test_a_text_longer_than_the_context_is_refused(tmp_path) -> None:
    from tiny_models import save_tiny

    with pytest.raises(UserError, match=r"600 tokens.*512"):
        read("hf", save_tiny(tmp_path / "m"), texts(1000, [(1, 600)]))


@pytest.mark.slow
def test_it_sees_the_laws_that_the_sampler_drew_from(packaged_model) -> None:
    """Mean entropy and survivors that a sample carries are those read afterwards, on both engines."""
    from ssd_lite.engines.sampling.choice import open_sampler
    from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(packaged_model.folder)
    text, ids = tokenizer.render([{"role": "user", "content": "Name three colours."}])
    law = SamplingSettings(1.1, 20, 0.8, 0.0, 8)
    sampler = open_sampler("llama_cpp", packaged_model.gguf, SamplerOptions(2, 1, tokenizer.end_ids, tokenizer.pad_id))
    requests = [Request(Prompt("p", text, tuple(ids)), index, 7 + index) for index in range(2)]
    made = list(sampler.sample(requests, law, lambda _: None))
    sampler.close()
    wanted = [Text(tuple(ids), one.ids, spread_positions(len(one.ids), 512)) for one in made]
    laws = [law, *LAWS]
    for engine, model in (("llama_cpp", packaged_model.gguf), ("hf", packaged_model.folder)):
        for completion, facts in zip(made, read(engine, model, wanted, laws), strict=True):
            assert facts.law_entropy[:, 0].mean() == pytest.approx(completion.entropy_nats, abs=0.02)
            assert facts.survivors[:, 0].mean() == pytest.approx(completion.survivors, abs=0.2)
            assert (facts.drawn_rank <= facts.survivors[:, 0] + 1).all()


def test_joined_keeps_the_order() -> None:
    parts = [read_block(np.eye(3, dtype=np.float32)[[n]], np.array([n]), np.array([n]), LAWS) for n in range(3)]
    assert joined(parts).place.tolist() == [0, 1, 2]
    assert joined(parts).top_ids[:, 0].tolist() == [0, 1, 2]
