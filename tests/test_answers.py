"""Answering problems into a journal: the wanted samples once each, the same after a stop, seeds by index."""

import dataclasses

import pytest

from ssd_lite.errors import Stopped, UserError
from ssd_lite.records import Problem, SamplingSettings
from ssd_lite.stages import answers
from ssd_lite.stages.answers import Answering, answer, read_samples, take

PROBLEMS = [Problem(f"p{i}", ({"role": "user", "content": f"Add {i} and 1."},)) for i in range(4)]


@pytest.fixture(scope="module")
def how(packaged_model):
    from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model

    source = resolve_model("smollm2-135m-instruct")
    settings = SamplingSettings(0.05, 20, 0.8, 0.0, 6)
    return Answering(
        "llama_cpp", hf_folder(source), gguf_file(source, "q8_0"), source.weights_sha256, settings, 2, 3, 3, 1
    )


def test_every_sample_is_made_once_and_a_second_call_makes_none(how, tmp_path):
    summary = answer(PROBLEMS, how, tmp_path / "s.jsonl", "sample")
    samples = read_samples(tmp_path / "s.jsonl")
    assert {s.key for s in samples} == {(p.id, i) for p in PROBLEMS for i in range(2)}
    assert summary["samples"] == 8
    assert summary["tokens"] == sum(len(s.completion_ids) for s in samples)
    assert len({s.seed for s in samples}) == 8
    before = (tmp_path / "s.jsonl").read_bytes()
    again = answer(PROBLEMS, how, tmp_path / "s.jsonl", "sample")
    assert (tmp_path / "s.jsonl").read_bytes() == before
    assert again["tokens_per_s"] is None
    for sample in samples:
        assert sample.settings == how.settings
        assert sample.model_hash == how.model_hash
        assert "<|im_end|>" not in sample.completion


def test_a_wish_to_stop_keeps_what_is_finished_and_the_rest_is_made_later(how, tmp_path, monkeypatch):
    file = tmp_path / "s.jsonl"
    looks = iter(range(1000))
    monkeypatch.setattr(answers, "stop_requested", lambda: next(looks) > 20)
    with pytest.raises(Stopped, match="run the same command again"):
        answer(PROBLEMS, how, file, "sample")
    first = file.read_bytes()
    assert 0 < first.count(b"\n") < 8
    monkeypatch.setattr(answers, "stop_requested", lambda: False)
    with open(file, "ab") as torn:
        torn.write(b'{"problem_id":"p3","ind')
    summary = answer(PROBLEMS, how, file, "sample")
    assert summary["cut_bytes"] > 0
    assert file.read_bytes().startswith(first)
    assert len({s.key for s in read_samples(file)}) == 8


def test_a_prompt_without_room_for_an_answer_is_refused_before_any_sample(how, tmp_path):
    long = Problem("long", ({"role": "user", "content": "word " * 9000},))
    with pytest.raises(UserError, match="do not fit"):
        answer([*PROBLEMS, long], how, tmp_path / "s.jsonl", "sample")
    assert (tmp_path / "s.jsonl").read_bytes() == b""


def test_take_draws_with_the_seed_and_keeps_the_order():
    drawn = take(PROBLEMS, 2, seed=0)
    assert drawn == take(PROBLEMS, 2, seed=0)
    assert [p.id for p in drawn] == sorted(p.id for p in drawn)
    assert len({tuple(p.id for p in take(PROBLEMS, 2, seed=s)) for s in range(20)}) > 1
    assert take(PROBLEMS, None, 0) == take(PROBLEMS, 9, 0) == PROBLEMS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": SamplingSettings(0.9, 20, 0.8, 0.0, 6)}, "other settings"),
        ({"seed": 4}, "another seed"),
        ({"model_hash": "other"}, "another model"),
        ({"n": 1}, "another problem set or n"),
    ],
)
def test_samples_made_otherwise_are_not_mixed_in(how, tmp_path, change, words):
    file = tmp_path / "s.jsonl"
    answer(PROBLEMS[:1], how, file, "sample")
    before = file.read_bytes()
    with pytest.raises(UserError, match=words):
        answer(PROBLEMS[:1], dataclasses.replace(how, **change), file, "sample")
    assert file.read_bytes() == before
