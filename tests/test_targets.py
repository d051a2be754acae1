"""Soft targets: kept while sampling by both engines, safe on disk, and what they do to loss and gradient."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import save_tiny_model

from ssd_lite.engines.sampling.hf_sampler import HfSampler
from ssd_lite.engines.sampling.law import Survivors, derived_seed, survivors
from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
from ssd_lite.engines.sampling.targets import Targets, TargetsBuilder
from ssd_lite.engines.training.batching import TrainingRow, collate
from ssd_lite.engines.training.loss import TERMS, loss_terms, target_loss
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.peft_model import build_model, trainable
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe import Train
from ssd_lite.records import Problem, Prompt, SamplingSettings, Span
from ssd_lite.span_file import SpanFile, read_span
from ssd_lite.stages import answers
from ssd_lite.stages.answers import Answering, answer, read_samples
from ssd_lite.stages.train import read_rows

LAW = SamplingSettings(temperature=1.6, top_k=20, top_p=0.8, min_p=0.0, max_new_tokens=12)
END = 1


def some_laws(positions: int, seed: int = 0, vocabulary: int = 300) -> Survivors:
    return survivors(np.random.default_rng(seed).normal(scale=2.0, size=(positions, vocabulary)), LAW)


def built(law: Survivors) -> Targets:
    builder = TargetsBuilder()
    for ids, probs in zip(law.ids, law.probs, strict=True):
        builder.add(ids, probs)
    return builder.build()


def test_the_kept_laws_are_the_laws_and_come_back_bit_for_bit() -> None:
    law = some_laws(17)
    targets = built(law)
    ids, probs = targets.padded(law.ids.shape[1])
    assert np.array_equal(probs, law.probs.astype(np.float32))
    assert np.array_equal(ids[probs > 0], law.ids[law.probs > 0])
    assert np.array_equal(targets.counts, law.counts())
    again = Targets.from_bytes(targets.to_bytes(), 17)
    for mine, theirs in zip(dataclasses.astuple(targets), dataclasses.astuple(again), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("positions", [16, 18, 0])
def test_bytes_of_another_completion_are_refused(positions: int) -> None:
    data = built(some_laws(17)).to_bytes()
    with pytest.raises(ValueError, match="not the targets of"):
        Targets.from_bytes(data, positions)
    with pytest.raises(ValueError, match="inflated"):
        Targets.from_bytes(data[:-9], 17)


def test_a_completion_that_the_laws_cannot_have_given_is_noticed() -> None:
    law = some_laws(5)
    targets, drawn = built(law), law.ids[:, 0].tolist()
    assert targets.hold(drawn)
    assert not targets.hold([*drawn[:4], int(law.ids[4, -1])])  # cut from the last position's nucleus
    assert not targets.hold(drawn[:4])
    cut = int(law.ids[0, -1])
    assert targets.outside(drawn).tolist() == []
    assert targets.outside([cut, *drawn[1:3], cut, drawn[4]]).tolist() == [0, 3]


def test_a_law_of_no_numbers_is_refused_when_it_comes_up() -> None:
    with pytest.raises(ValueError, match="no token survives"):
        TargetsBuilder().add(np.array([3, 4]), np.array([np.nan, np.nan]))


def test_what_a_kill_left_behind_is_cut_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "targets" / "t.bin"
    with SpanFile(file, []) as spans:
        first, second = spans.append(b"first"), spans.append(b"second")
    with SpanFile(file, [first]) as spans:  # the record of the second never reached the journal
        assert file.read_bytes() == b"first"
        third = spans.append(b"third")
    assert (read_span(file, first), read_span(file, third)) == (b"first", b"third")
    with pytest.raises(UserError, match="damaged at byte 5"):
        read_span(file, second)
    with pytest.raises(UserError, match="is cut: 10 bytes, and its samples name 30"):
        SpanFile(file, [Span(20, 10, 0)])
    assert file.read_bytes() == b"firstthird"


def one_step_law(folder: Path, row: TrainingRow) -> Survivors:
    """The laws of a row's positions from one forward pass over the whole row."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
    first = len(row.prompt_ids) - 1
    return survivors(logits[first : first + len(row.completion_ids)].numpy(), LAW)


def test_the_hf_engine_keeps_the_laws_it_drew_from(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    prompts = [Prompt(f"p{n}", "", tuple(range(5, 8 + n))) for n in range(3)]
    requests = [Request(prompt, 0, derived_seed(0, prompt.problem_id, 0)) for prompt in prompts]
    sampler = HfSampler(folder, SamplerOptions(3, 1, (END,), 0, keep_targets=True))
    for completion in sampler.sample(requests, LAW, lambda _: None):
        assert completion.targets is not None
        assert completion.targets.hold(completion.ids)
        assert completion.survivors == pytest.approx(completion.targets.counts.mean())
        law = one_step_law(folder, TrainingRow(completion.request.prompt.ids, completion.ids))
        ids, probs = completion.targets.padded(20)
        assert np.array_equal(completion.targets.counts, law.counts())
        assert np.array_equal(ids[probs > 0], law.ids[law.probs > 0])
        assert np.allclose(probs, law.probs, atol=1e-4)


@pytest.fixture(scope="module")
def how(packaged_model):
    from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model

    source = resolve_model("smollm2-135m-instruct")
    weights = gguf_file(source, "q8_0")
    settings = dataclasses.replace(LAW, max_new_tokens=8)
    return Answering("llama_cpp", hf_folder(source), weights, source.weights_sha256, settings, 2, 3, 3, 1)


PROBLEMS = [Problem(f"p{i}", ({"role": "user", "content": f"Add {i} and 1."},)) for i in range(3)]


@pytest.mark.slow
def test_samples_and_laws_survive_a_stop(how, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, a piece of a law lost at the end: gone on with, all laws are those of one go."""
    whole = dataclasses.replace(how, targets_file=tmp_path / "whole.bin")
    answer(PROBLEMS, whole, tmp_path / "whole.jsonl", "sample")
    parted = dataclasses.replace(how, targets_file=tmp_path / "parted.bin")
    looks = iter(range(1000))
    monkeypatch.setattr(answers, "stop_requested", lambda: next(looks) > 14)
    with pytest.raises(Stopped):
        answer(PROBLEMS, parted, tmp_path / "parted.jsonl", "sample")
    monkeypatch.setattr(answers, "stop_requested", lambda: False)
    made = len(read_samples(tmp_path / "parted.jsonl"))
    assert 0 < made < 6
    with open(tmp_path / "parted.bin", "ab") as torn:
        torn.write(b"half a law")
    answer(PROBLEMS, parted, tmp_path / "parted.jsonl", "sample")
    laws = {}
    for name in ("whole", "parted"):
        for sample in read_samples(tmp_path / f"{name}.jsonl"):
            assert sample.targets is not None
            data = read_span(tmp_path / f"{name}.bin", sample.targets)
            targets = Targets.from_bytes(data, len(sample.completion_ids))
            assert targets.hold(sample.completion_ids)
            assert sample.survivors == pytest.approx(targets.counts.mean(), abs=1e-4)
            laws[name, sample.key] = (sample.completion_ids, targets.counts.tolist())
    assert len(laws) == 12
    assert {key: law for (name, key), law in laws.items() if name == "whole"} == {
        key: law for (name, key), law in laws.items() if name == "parted"
    }


def test_without_a_file_no_law_is_kept(how, tmp_path: Path) -> None:
    answer(PROBLEMS[:1], how, tmp_path / "s.jsonl", "sample")
    assert all(sample.targets is None and sample.survivors for sample in read_samples(tmp_path / "s.jsonl"))


def row_with_laws(soft: bool, seed: int = 0, length: int = 6) -> TrainingRow:
    law = some_laws(length, seed)
    drawn = law.draw(np.random.default_rng(seed).random(length))
    return TrainingRow((5, 6, 7 + seed), tuple(drawn.tolist()), built(law), soft)


def test_a_batch_trains_on_the_drawn_token_or_on_the_law() -> None:
    for soft in (False, True):
        rows = [row_with_laws(soft, seed=0, length=4), row_with_laws(soft, seed=1, length=7)]
        batch = collate(rows, 11)
        drawn = torch.tensor(rows[0].completion_ids + rows[1].completion_ids)
        assert torch.allclose(batch["target_probs"].sum(dim=1), torch.ones(11))
        assert torch.equal(batch["teacher_probs"] > 0, batch["teacher_probs"] != 0)
        if soft:
            assert torch.equal(batch["target_probs"], batch["teacher_probs"])
        else:
            trained = batch["target_ids"].gather(1, batch["target_probs"].argmax(dim=1, keepdim=True))[:, 0]
            assert torch.equal(trained, drawn)
            assert batch["target_probs"].max(dim=1).values.eq(1).all()


def test_id_0_as_a_drawn_token_is_not_confused_with_padding() -> None:
    builder = TargetsBuilder()
    builder.add(np.array([0]), np.array([1.0]))
    builder.add(np.array([4, 0, 9]), np.array([0.5, 0.3, 0.2]))
    batch = collate([TrainingRow((5,), (0, 0), builder.build())], 2)
    assert batch["target_probs"].tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_a_row_without_laws_among_others_takes_the_terms_away() -> None:
    batch = collate([row_with_laws(False), TrainingRow((5,), (8, 9))], 8)
    assert "teacher_probs" not in batch
    assert batch["target_ids"][-1, 0] == 9


def test_the_terms_add_up_to_the_expected_loss_also_where_sampled_tokens_are_trained() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, dtype=torch.float64), torch.randn(300, 8, dtype=torch.float64)
    batch = collate([row_with_laws(False)], 6)
    _, log_probs = target_loss(hidden, weight, None, batch["target_ids"], batch["target_probs"].double())
    terms = loss_terms(log_probs, batch["teacher_probs"].double(), LAW.temperature)
    soft, _ = target_loss(hidden, weight, None, batch["target_ids"], batch["teacher_probs"].double())
    assert set(terms) == set(TERMS)
    parts = sum(terms[name] for name in ("support_compression", "reshaping", "alignment", "target_entropy"))
    # q is kept in float32, so it adds up to 1 within 1e-7 a position.
    assert parts.item() == pytest.approx(soft.item(), abs=1e-5)
    assert terms["expected_loss"].item() == pytest.approx(soft.item(), abs=1e-9)


def gradient(model: LossModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.zero_grad()
    names = ("input_ids", "positions", "target_ids", "target_probs", "step_tokens")
    model(**{name: batch[name] for name in names})["loss"].backward()
    return torch.cat([tensor.grad.flatten() for tensor in trainable(model).values() if tensor.grad is not None])


@pytest.mark.slow
def test_the_mean_gradient_of_sampled_targets_converges_to_that_of_soft_ones(tmp_path: Path) -> None:
    """On a tiny model with LoRA, the context fixed and only the target drawn anew: the error falls as 1/sqrt(draws)."""
    network = build_model(save_tiny_model(tmp_path / "tiny"), Train(lora_r=4, gradient_checkpointing=False))
    model = LossModel(network.train(False))
    with torch.no_grad():  # B starts at zero, which would hide the gradient of A
        for tensor in trainable(model).values():
            tensor.normal_(std=0.05)
    row = row_with_laws(True)
    batch = collate([row], 6)
    soft = gradient(model, batch)
    draw = np.random.default_rng(7)
    law = some_laws(6)
    drawn = {}
    total, errors = torch.zeros_like(soft), {}
    for number in range(1, 1025):
        tokens = tuple(law.draw(draw.random(6)).tolist())
        if tokens not in drawn:
            # The context stays the first draw's; only what is trained is new.
            trained = collate([dataclasses.replace(row, soft=False)], 6)
            ids = torch.tensor(tokens)[:, None]
            trained["target_probs"] = ((trained["target_ids"] == ids) & (trained["teacher_probs"] > 0)).float()
            drawn[tokens] = gradient(model, trained)
        total += drawn[tokens]
        errors[number] = ((total / number - soft).norm() / soft.norm()).item()
    assert errors[1] > 0.3, "a single draw is far from the mean"
    assert errors[1024] < 0.1
    assert errors[1024] < errors[16] / 3


def write_row(tmp_path: Path, row: TrainingRow, span: Span | None) -> Path:
    file = tmp_path / "train.jsonl"
    value = {"prompt_ids": row.prompt_ids, "completion_ids": row.completion_ids}
    value["targets"] = None if span is None else dataclasses.asdict(span)
    file.write_text(json.dumps(value) + "\n")
    return file


def test_rows_are_read_with_their_laws(tmp_path: Path) -> None:
    row, targets = row_with_laws(True), tmp_path / "t.bin"
    assert row.targets is not None
    with SpanFile(targets, []) as spans:
        spans.append(b"another")
        span = spans.append(row.targets.to_bytes())
    read = read_rows(write_row(tmp_path, row, span), 99, targets, soft=True)[0]
    assert read.targets is not None
    assert (read.soft, read.completion_ids) == (True, row.completion_ids)
    assert np.array_equal(read.targets.probs, row.targets.probs)


def test_laws_that_are_not_a_rows_are_said(tmp_path: Path) -> None:
    """Also where the drawn token is trained: a token without a place among its survivors would train on nothing."""
    row, targets = row_with_laws(True), tmp_path / "t.bin"
    assert row.targets is not None
    with SpanFile(targets, []) as spans:
        span = spans.append(row.targets.to_bytes())
    ids = row.completion_ids
    for changed, words in (
        (
            (*ids[:5], 299),
            r"1 of its 6 tokens cannot have been drawn from the laws .* in t\.bin, first the one at place 5",
        ),
        ((299, *ids[1:4], 299, ids[5]), "2 of its 6 tokens .* at place 0"),
        (ids[:5], "not the targets of 5 positions"),
    ):
        file = write_row(tmp_path, dataclasses.replace(row, completion_ids=changed), span)
        with pytest.raises(UserError, match=words) as caught:
            read_rows(file, 99, targets, soft=True)
        assert str(caught.value.next_step).endswith("sample again in a new folder with --out.")
        with pytest.raises(UserError, match=r"or move .*t\.bin away: train.target sampled does without"):
            read_rows(file, 99, targets)
        targets.rename(tmp_path / "away")
        assert read_rows(file, 99, targets)[0].targets is None, "the advice works"
        (tmp_path / "away").rename(targets)


def test_soft_training_without_laws_is_refused_and_sampled_training_goes_on(tmp_path: Path) -> None:
    file = write_row(tmp_path, row_with_laws(True), None)
    with pytest.raises(UserError, match="no soft targets"):
        read_rows(file, 99, tmp_path / "t.bin", soft=True)
    assert read_rows(file, 99, tmp_path / "t.bin")[0].targets is None
    deleted = write_row(tmp_path, row_with_laws(True), Span(0, 9, 1))
    assert read_rows(deleted, 99, tmp_path / "t.bin")[0].targets is None
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(deleted, 99, tmp_path / "t.bin", soft=True)
