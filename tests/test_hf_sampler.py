"""Batched HF sampling: padding, seeds, ends, and halving the batch when memory runs out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_model import save_tiny_model

from ssd_lite.engines.sampling.hf_sampler import HfSampler
from ssd_lite.engines.sampling.law import derived_seed
from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
from ssd_lite.engines.scoring.hf_scorer import HfScorer
from ssd_lite.errors import UserError
from ssd_lite.records import Prompt, SamplingSettings

END = 1
SETTINGS = SamplingSettings(temperature=1.0, top_k=20, top_p=0.9, min_p=0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def requests(lengths, n=2):
    prompts = [Prompt(f"p{i}", "", tuple(range(5, 5 + length))) for i, length in enumerate(lengths)]
    return [Request(p, index, derived_seed(0, p.problem_id, index)) for p in prompts for index in range(n)]


def sample(folder, batch_size, wanted, settings=SETTINGS):
    sampler = HfSampler(folder, SamplerOptions(batch_size, 1, (END,), 0))
    counted = []
    done = {(c.request.prompt.problem_id, c.request.index): c for c in sampler.sample(wanted, settings, counted.append)}
    return done, sum(counted)


def test_batches_of_unequal_prompts_give_what_single_prompts_give(folder):
    wanted = requests([3, 9, 20, 6])
    alone, _ = sample(folder, 1, wanted)
    together, counted = sample(folder, 8, wanted)
    assert set(alone) == set(together)
    assert len(alone) == 8
    assert {k: c.ids for k, c in alone.items()} == {k: c.ids for k, c in together.items()}
    assert counted >= sum(len(c.ids) for c in together.values())


def test_the_samples_of_a_problem_differ_and_repeat_with_their_seed(folder):
    first, _ = sample(folder, 4, requests([5], n=6))
    again, _ = sample(folder, 4, requests([5], n=6))
    assert {k: c.ids for k, c in first.items()} == {k: c.ids for k, c in again.items()}
    assert len({c.ids for c in first.values()}) > 1


@pytest.mark.parametrize(
    "own",
    [
        {"suppress_tokens": list(range(60, 200))},
        {"bad_words_ids": [[token] for token in range(60, 200)]},
        {"forced_eos_token_id": END},
        {"exponential_decay_length_penalty": [2, 5.0]},
        {"guidance_scale": 1.5},
        {"min_new_tokens": 12},
        {"max_time": 0.0001},
        {"stop_strings": ["x"]},
        {"top_k": 50, "temperature": 0.6, "repetition_penalty": 1.3, "do_sample": True},
    ],
    ids=lambda own: "-".join(own),
)
def test_the_models_own_generation_settings_do_not_bend_the_law(folder, tmp_path, own):
    other = tmp_path / "m"
    shutil.copytree(folder, other)
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": END, **own}))
    wanted = requests([4, 6], n=3)
    plain, bent = (sample(place, 6, wanted)[0] for place in (folder, other))
    assert {key: one.ids for key, one in plain.items()} == {key: one.ids for key, one in bent.items()}


def test_a_model_that_padding_confuses_is_sampled_one_by_one(folder, monkeypatch, capsys):
    """Such as one whose code counts positions from the padding on; one that is right is not slowed down."""
    wanted = requests([3, 9, 20, 6])
    alone, _ = sample(folder, 1, wanted)
    sizes = []
    real = HfSampler._generate
    monkeypatch.setattr(
        HfSampler, "_generate", lambda self, batch, *rest: (sizes.append(len(batch)), real(self, batch, *rest))
    )
    sample(folder, 8, wanted)
    assert (sizes, "padding" in capsys.readouterr().err) == ([8], False)
    load = HfSampler.__init__

    def deaf(self, *given):
        load(self, *given)
        forward = self._model.forward

        def without_mask(*args, **kwargs):
            kwargs.pop("attention_mask", None)
            kwargs.pop("position_ids", None)
            return forward(*args, **kwargs)

        self._model.forward = without_mask

    monkeypatch.setattr(HfSampler, "__init__", deaf)
    sizes.clear()
    confused, _ = sample(folder, 8, wanted)
    assert sizes == [1] * 8
    assert "depends on the padding before a prompt" in capsys.readouterr().err
    assert {key: one.ids for key, one in confused.items()} == {key: one.ids for key, one in alone.items()}


def test_a_card_that_cannot_hold_the_model_is_said(folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    for load in (lambda: HfSampler(folder, SamplerOptions(1, 1, (END,), 0)), lambda: HfScorer(folder, 1)):
        with pytest.raises(UserError, match="the card has no memory left for the model") as caught:
            load()
        assert caught.value.where == "model.name"


def test_an_end_token_stands_last_and_only_where_the_model_stopped(folder):
    # A third of the vocabulary ends a completion here, so that both reasons occur.
    ends = tuple(range(100))
    sampler = HfSampler(folder, SamplerOptions(4, 1, ends, 0))
    short = SamplingSettings(1.0, 0, 1.0, 0.0, 3)
    reasons = set()
    for completion in sampler.sample(requests([4, 7], n=12), short, lambda n: None):
        reasons.add(completion.finish_reason)
        assert not any(token in ends for token in completion.ids[:-1])
        assert (completion.ids[-1] in ends) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.ids) == 3
        assert completion.entropy_nats > 0
    assert reasons == {"stop", "length"}


def test_the_batch_is_halved_when_memory_runs_out_and_nothing_is_lost(folder, monkeypatch):
    real, sizes = HfSampler._generate, []

    def small_card(self, batch, settings, draw):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, settings, draw)

    monkeypatch.setattr(HfSampler, "_generate", small_card)
    done, _ = sample(folder, 8, requests([3, 9, 20, 6]))
    assert len(done) == 8
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2


def test_what_has_ended_when_memory_runs_out_is_not_made_again(folder, monkeypatch):
    wanted = requests([3, 9, 20, 6])
    plain, _ = sample(folder, 8, wanted)
    real, sizes = HfSampler._generate, []

    def late(self, batch, settings, draw):
        sizes.append(len(batch))
        real(self, batch, settings, draw)
        if len(batch) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(HfSampler, "_generate", late)
    done, _ = sample(folder, 8, wanted)
    assert {key: one.ids for key, one in done.items()} == {key: one.ids for key, one in plain.items()}
    cut_off = sum(one.finish_reason == "length" for one in plain.values())
    assert 0 < cut_off < 8
    assert sum(sizes) == 8 + cut_off


def test_a_single_completion_too_large_for_the_card_is_a_user_error(folder, monkeypatch):
    def no_memory(self, batch, settings, draw):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(HfSampler, "_generate", no_memory)
    with pytest.raises(UserError, match="too little memory"):
        sample(folder, 4, requests([3]))


def test_prompts_longer_than_the_context_are_refused_before_anything_runs(folder):
    sampler = HfSampler(folder, SamplerOptions(4, 1, (END,), 0))
    long = requests([sampler.context_length - 5], n=1)
    with pytest.raises(UserError, match="do not fit"):
        next(iter(sampler.sample(long, SETTINGS, lambda n: None)))


def test_the_models_own_generation_config_does_not_bend_the_law(folder, tmp_path):
    import shutil

    from transformers import GenerationConfig

    bent = tmp_path / "bent"
    shutil.copytree(folder, bent)
    GenerationConfig(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0).save_pretrained(bent)
    wanted = requests([3, 9])
    plain, _ = sample(folder, 4, wanted)
    with_config, _ = sample(bent, 4, wanted)
    assert {k: c.ids for k, c in plain.items()} == {k: c.ids for k, c in with_config.items()}
