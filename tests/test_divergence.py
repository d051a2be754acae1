"""KL, best token and perplexity against plain sums; the reference is read first and waits in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssd_lite.engines.checks.gguf_measures import ReferenceModel, choose_reference, measure, most_positions
from ssd_lite.engines.scoring.divergence import Reference, log_probabilities
from ssd_lite.engines.scoring.scorer import Text, spread_positions
from ssd_lite.errors import UserError

pytest.importorskip("llama_cpp")


def texts(lengths: list[tuple[int, int]], most: int = 512) -> list[Text]:
    draw = np.random.default_rng(1)
    ids = [[tuple(draw.integers(3, 1000, n).tolist()) for n in pair] for pair in lengths]
    return [Text(prompt, completion, spread_positions(len(completion), most)) for prompt, completion in ids]


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A random model wide enough for K-quants, and files of it."""
    from tiny_models import save_tiny

    from ssd_lite.engines.gguf.set import write_gguf_set

    folder = save_tiny(tmp_path_factory.mktemp("m") / "m", hidden_size=256, intermediate_size=512)
    paths = {name: folder.parent / f"m-{name}.gguf" for name in ("f32", "q8_0", "q2_k")}
    write_gguf_set(folder, paths)
    return folder, paths


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_it_is_the_kl_of_the_whole_vocabulary(ggufs) -> None:
    """Every position of one text by plain sums over transformers' and llama.cpp's logits."""
    from tiny_models import hf_logits, llama_logits

    folder, paths = ggufs
    text = texts([(5, 4)])[0]
    before = [list(text.prompt_ids + text.completion_ids[:place]) for place in range(4)]
    p = softmax(np.stack([hf_logits(folder, ids) for ids in before]).astype(np.float64))
    q = softmax(np.stack([llama_logits(paths["q2_k"], ids) for ids in before]).astype(np.float64))
    kl = (p * np.log(p / q)).sum(axis=1)
    perplexity, found = measure(ReferenceModel("hf", folder, ""), {"q2_k": paths["q2_k"]}, [text], lambda _: None, 1)
    there = np.arange(4), list(text.completion_ids)
    assert found["q2_k"].kl == pytest.approx(kl.mean(), rel=0.02)
    assert found["q2_k"].same_top == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert found["q2_k"].perplexity == pytest.approx(np.exp(-np.log(q[there]).mean()), rel=0.01)
    assert perplexity == pytest.approx(np.exp(-np.log(p[there]).mean()), rel=0.01)
    assert found["q2_k"].positions == 4
    assert found["q2_k"].kl_error is None


def test_fewer_bits_lie_farther_and_nothing_is_left_behind(ggufs) -> None:
    folder, paths = ggufs
    before = sorted(folder.parent.iterdir())
    read: list[int] = []
    wanted = texts([(5, 40), (30, 7), (9, 25)], most=16)
    _, found = measure(ReferenceModel("hf", folder, ""), paths, wanted, read.append, 1)
    assert [found[name].positions for name in paths] == [39, 39, 39]
    assert sum(read) == 4 * sum(len(text.ids) for text in wanted)
    assert 0 <= found["f32"].kl < 1e-4 < found["q8_0"].kl < found["q2_k"].kl
    assert found["q2_k"].same_top < found["f32"].same_top == 1.0
    assert all(found[name].kl_error > 0 and found[name].kl_high >= found[name].kl for name in ("q8_0", "q2_k"))
    assert sorted(folder.parent.iterdir()) == before


def test_a_disk_without_room_for_the_laws_is_said(ggufs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped without being reserved, a full disk would end the process by SIGBUS."""
    import errno
    import os

    folder, paths = ggufs
    before = sorted(folder.parent.iterdir())

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device"):
        measure(ReferenceModel("hf", folder, ""), paths, texts([(5, 40)]), lambda tokens: None, 1)
    assert sorted(folder.parent.iterdir()) == before


def test_pieces_smaller_than_a_text_change_nothing(ggufs, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssd_lite.engines.scoring import hf_scorer, llama_cpp_scorer

    folder, paths = ggufs
    wanted, reference = texts([(5, 40), (30, 7)]), ReferenceModel("hf", folder, "")
    whole = measure(reference, {"q8_0": paths["q8_0"]}, wanted, lambda _: None, 1)
    for module in (hf_scorer, llama_cpp_scorer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 1024 * 7)
    pieces = measure(reference, {"q8_0": paths["q8_0"]}, wanted, lambda _: None, 1)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-4)
    assert pieces[1]["q8_0"].kl == pytest.approx(whole[1]["q8_0"].kl, rel=0.05)


def test_the_error_takes_texts_as_units(tmp_path: Path) -> None:
    """Positions that repeat each other inside a text do not make the mean surer."""
    values = np.array([1.0, 1.0, 1.0, 3.0, 3.0, 3.0])
    with Reference(texts([(1, 3), (1, 3)]), tmp_path) as laws:
        assert laws._error(values) == pytest.approx(np.std([1.0, 3.0], ddof=1) / np.sqrt(2))


def test_vocabularies_of_two_lengths_are_compared_where_both_have_tokens(tmp_path: Path, monkeypatch) -> None:
    import ssd_lite.engines.scoring.divergence as module

    rows = {
        "a": np.array([[1.0, 2.0, 0.5, -3.0]], dtype=np.float32),
        "b": np.array([[1.5, 1.0, 0.0]], dtype=np.float32),
    }

    def visit(engine, model, read, take, count, threads):
        yield 0, [take(0, rows[str(model)], np.array([True]))]

    monkeypatch.setattr(module, "visit", visit)
    with Reference([Text((5,), (2,), np.array([0]))], tmp_path) as laws:
        with pytest.raises(ValueError, match="read first"):
            laws.compare("hf", Path("b"), lambda _: None)
        laws.read("hf", Path("a"), lambda _: None)
        found = laws.compare("hf", Path("b"), lambda _: None)
    p, q = softmax(rows["a"][0, :3].astype(float)), softmax(rows["b"][0].astype(float))
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    assert found.same_top == 0.0


def test_masked_tokens_give_numbers() -> None:
    laws = log_probabilities(np.array([[0.0, 1.0, -np.inf]], dtype=np.float32))
    assert np.isfinite(laws).all()
    assert np.exp(laws).sum() == pytest.approx(1.0)


def test_the_reference_is_the_model_where_it_fits_and_an_exact_file_where_not(ggufs, monkeypatch) -> None:
    import ssd_lite.engines.checks.gguf_measures as module

    folder, paths = ggufs
    assert choose_reference(folder, paths).engine == "hf"
    monkeypatch.setattr(module, "available_bytes", lambda: 1_000_000)
    monkeypatch.setattr(module, "card_bytes", lambda: None)
    found = choose_reference(folder, paths)
    assert (found.engine, found.path) == ("llama_cpp", paths["f32"])
    assert "GiB of free memory" in found.words
    assert "no f32, bf16 or f16 file" in choose_reference(folder, {"q8_0": paths["q8_0"]})
    perplexity, distances = measure(found, {"f32": paths["f32"]}, texts([(5, 9)]), lambda _: None, 1)
    assert distances["f32"].kl == pytest.approx(0, abs=1e-6)
    assert distances["f32"].perplexity == pytest.approx(perplexity)


def test_positions_are_bounded_by_the_vocabulary() -> None:
    assert most_positions(49_152, 1024) == 1024
    assert 4 * 151_936 * most_positions(151_936, 1024) <= 256 * 2**20
    assert most_positions(151_936, 1024) > 400
