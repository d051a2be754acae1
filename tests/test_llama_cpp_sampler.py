"""llama.cpp sampling on the packaged model: batches, shared prompts, ends, caps, and what is refused beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ssd_lite.engines.sampling.law import derived_seed
from ssd_lite.engines.sampling.sampler import Completion, Request, SamplerOptions, check_lengths
from ssd_lite.errors import UserError
from ssd_lite.records import Prompt, SamplingSettings

pytest.importorskip("llama_cpp")

TASKS = {
    "larger": "Write a Python function larger(a, b) that returns the larger of two numbers.",
    "list": "What is a list in Python? Answer in one sentence.",
    "capital": "What is the capital of France?",
}
# A low temperature leaves the draw to chance so rarely that the last bits of the logits do not matter.
NEARLY_GREEDY = SamplingSettings(0.05, 20, 0.8, 0.0, 24)
HOT = SamplingSettings(1.1, 20, 0.95, 0.0, 12)


@pytest.fixture(scope="module")
def tokenizer(packaged_model):
    from ssd_lite.engines.tokenizer import ChatTokenizer

    return ChatTokenizer.load(packaged_model.folder)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[Prompt]:
    rendered = [(name, *tokenizer.render([{"role": "user", "content": text}])) for name, text in TASKS.items()]
    return [Prompt(name, text, tuple(ids)) for name, text, ids in rendered]


@pytest.fixture(scope="module")
def open_sampler(packaged_model, tokenizer):
    """Open the F16 model with a batch size; all are closed in the end."""
    from ssd_lite.engines.sampling.llama_cpp_sampler import LlamaCppSampler

    opened: dict[int, LlamaCppSampler] = {}

    def _open(batch_size: int) -> LlamaCppSampler:
        if batch_size not in opened:
            options = SamplerOptions(batch_size, 1, tokenizer.end_ids, tokenizer.pad_id)
            opened[batch_size] = LlamaCppSampler(packaged_model.gguf, options)
        return opened[batch_size]

    yield _open
    for sampler in opened.values():
        sampler.close()


def requests_for(prompts: Sequence[Prompt], n: int) -> list[Request]:
    return [Request(p, index, derived_seed(0, p.problem_id, index)) for p in prompts for index in range(n)]


def by_key(completions: Sequence[Completion]) -> dict[tuple[str, int], Completion]:
    found = {(c.request.prompt.problem_id, c.request.index): c for c in completions}
    assert len(found) == len(completions), "a request was answered twice"
    return found


@pytest.mark.slow
def test_the_batch_size_does_not_change_what_is_said(open_sampler, prompts) -> None:
    """2 samples of 3 prompts: more requests than slots, and slots that are filled again while others run."""
    requests = requests_for(prompts, 2)
    answers = [by_key(list(open_sampler(size).sample(requests, NEARLY_GREEDY, lambda _: None))) for size in (1, 2, 4)]
    wanted = {(r.prompt.problem_id, r.index) for r in requests}
    for found in answers:
        assert set(found) == wanted
        assert {key: c.ids for key, c in found.items()} == {key: c.ids for key, c in answers[0].items()}


def test_a_completion_ends_with_an_end_token_or_at_the_cap(open_sampler, prompts, tokenizer) -> None:
    ends = set(tokenizer.end_ids)
    found = list(open_sampler(4).sample(requests_for(prompts, 2), NEARLY_GREEDY, lambda _: None))
    assert {c.finish_reason for c in found} == {"stop", "length"}, "the test wants both kinds"
    for completion in found:
        assert not ends & set(completion.ids[:-1])
        if completion.finish_reason == "stop":
            assert completion.ids[-1] in ends
        else:
            assert completion.ids[-1] not in ends
            assert len(completion.ids) == NEARLY_GREEDY.max_new_tokens


def test_one_token_is_a_whole_completion(open_sampler, prompts) -> None:
    one = SamplingSettings(1.1, 20, 0.95, 0.0, 1)
    found = list(open_sampler(2).sample(requests_for(prompts, 3), one, lambda _: None))
    assert [len(c.ids) for c in found] == [1] * 9


def test_seeds_fix_the_draws_and_indices_differ(open_sampler, prompts) -> None:
    requests = requests_for(prompts[:1], 4)
    first, second = (by_key(list(open_sampler(4).sample(requests, HOT, lambda _: None))) for _ in range(2))
    assert {key: c.ids for key, c in first.items()} == {key: c.ids for key, c in second.items()}
    assert len({c.ids for c in first.values()}) > 1


def test_the_entropy_is_that_of_the_laws(open_sampler, prompts) -> None:
    cold = list(open_sampler(4).sample(requests_for(prompts, 1), NEARLY_GREEDY, lambda _: None))
    hot = list(open_sampler(4).sample(requests_for(prompts, 1), HOT, lambda _: None))
    assert 0 <= max(c.entropy_nats for c in cold) < 0.1 < min(c.entropy_nats for c in hot) < np.log(20)


def test_drawn_tokens_are_counted_and_prompts_are_read_once_a_group(open_sampler, prompts) -> None:
    counted: list[int] = []
    requests = requests_for(prompts[:1], 4)
    found = list(open_sampler(4).sample(requests, HOT, counted.append))
    assert sum(counted) == sum(len(c.ids) for c in found)
    assert counted.count(0) == 1, "told of one block of one prompt: the other three copy it"


def test_a_copied_prompt_gives_the_logits_of_a_computed_one(packaged_model, prompts) -> None:
    from ssd_lite.engines.llama_context import LlamaContext, LlamaModel

    ids = prompts[0].ids
    model = LlamaModel(packaged_model.gguf)
    context = LlamaContext(model, sequences=3, length=len(ids) + 16)
    context.set_threads(1)
    try:
        context.prefill(0, ids)
        for position in range(len(ids), len(ids) + 8):
            context.step([(0, 100 + position, position)])
        context.copy(0, 1, len(ids))
        context.prefill(2, ids)
        copied, fresh = context.step([(1, 500, len(ids)), (2, 500, len(ids))]).copy()
    finally:
        context.close()
        model.close()
    assert np.abs(copied - fresh).max() < 0.02
    assert np.std(fresh) > 1


def test_a_prompt_longer_than_a_batch_is_computed_in_parts(packaged_model, tokenizer) -> None:
    from ssd_lite.engines.llama_context import LlamaContext, LlamaModel

    ids = tokenizer.encode("one two three four five six seven eight nine ten " * 8)
    model = LlamaModel(packaged_model.gguf)
    logits = []
    try:
        for batch in (16, 512):
            context = LlamaContext(model, sequences=1, length=len(ids) + 1, batch=batch)
            context.set_threads(1)
            logits.append(context.prefill(0, ids))
            context.close()
    finally:
        model.close()
    assert len(ids) > 64
    assert np.abs(logits[0] - logits[1]).max() < 0.05


def test_no_requests_are_no_work(open_sampler) -> None:
    assert list(open_sampler(2).sample([], HOT, lambda _: None)) == []


def test_a_caller_who_stops_early_leaves_the_sampler_usable(open_sampler, prompts) -> None:
    stream = open_sampler(2).sample(requests_for(prompts, 2), HOT, lambda _: None)
    next(stream)
    stream.close()
    assert len(list(open_sampler(2).sample(requests_for(prompts, 1), HOT, lambda _: None))) == 3


def test_streaming_gives_the_tokens_of_a_completion(open_sampler, prompts) -> None:
    request = requests_for(prompts[2:], 1)[0]
    (completion,) = open_sampler(1).sample([request], NEARLY_GREEDY, lambda _: None)
    assert tuple(open_sampler(1).stream(request.prompt.ids, NEARLY_GREEDY, request.seed)) == completion.ids


def test_prompts_that_do_not_fit_are_refused_before_any_work(open_sampler) -> None:
    sampler = open_sampler(1)
    requests = [
        Request(Prompt("fits", "", (1,) * 10), 0, 0),
        *(Request(Prompt("long", "", (1,) * sampler.context_length), index, index) for index in range(3)),
    ]
    counted: list[int] = []
    with pytest.raises(UserError) as caught:
        list(sampler.sample(requests, HOT, counted.append))
    assert counted == []
    assert caught.value.where == "problem long"
    assert f"1 prompts do not fit: long has {sampler.context_length} tokens" in caught.value.what


@pytest.mark.parametrize(("length", "fits"), [(88, True), (89, False)])
def test_a_prompt_and_its_completion_may_fill_the_context_exactly(length: int, fits: bool) -> None:
    request = Request(Prompt("p", "", (1,) * length), 0, 0)
    if fits:
        check_lengths([request], HOT, 100)
    else:
        with pytest.raises(UserError, match="leaves 88"):
            check_lengths([request], HOT, 100)


def test_a_file_that_is_no_model_is_named(tmp_path) -> None:
    from ssd_lite.engines.llama_context import LlamaModel

    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(UserError, match="cannot load it") as caught:
        LlamaModel(path)
    assert caught.value.where == str(path)
