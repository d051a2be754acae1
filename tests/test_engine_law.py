"""Both sampling engines draw from one law: same weights, same survivors, and first tokens as often as the law says."""

from collections import Counter

import numpy as np
import pytest

from ssd_lite.engines.sampling.choice import open_sampler
from ssd_lite.engines.sampling.law import derived_seed, survivors
from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
from ssd_lite.records import Prompt, SamplingSettings

LAW = SamplingSettings(temperature=1.6, top_k=20, top_p=0.8, min_p=0.0, max_new_tokens=1)
TASKS = (
    "Write a Python function that returns the larger of two numbers.",
    "Explain what a list is.",
    "Sum the digits of a number read from stdin, in Python.",
)
ANSWER = """ Sure, here is the answer:
```python
def solve(a, b):
    if a > b:
        return a
    return b
```
This function compares the two numbers and returns the larger one of them. If they are equal, it returns either one."""


@pytest.fixture(scope="module")
def sources(packaged_model):
    """Folder, tokenizer and F16 GGUF of the packaged model."""
    from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model
    from ssd_lite.engines.tokenizer import ChatTokenizer

    source = resolve_model("smollm2-135m-instruct")
    folder = hf_folder(source)
    return folder, ChatTokenizer.load(folder), gguf_file(source, "f16")


@pytest.fixture(scope="module")
def hf_model(sources):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(sources[0], dtype=torch.float32).eval()


def hf_logits(model, ids):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def llama_logits(gguf, ids):
    """Token by token, as sampling does it."""
    from ssd_lite.engines.llama_context import LlamaContext, LlamaModel

    model = LlamaModel(gguf)
    context = LlamaContext(model, sequences=1, length=len(ids))
    context.set_threads(1)
    rows = [context.prefill(0, ids[:1])]
    rows += [context.step([(0, token, position)])[0].copy() for position, token in enumerate(ids) if position]
    context.close()
    model.close()
    return np.stack(rows)


@pytest.mark.slow
def test_f32_folder_and_f16_gguf_give_the_same_survivors_and_probabilities(sources, hf_model):
    _, tokenizer, gguf = sources
    variations, at_the_edge = [], 0
    for task in TASKS:
        ids = tokenizer.render([{"role": "user", "content": task}])[1] + tokenizer.encode(ANSWER)
        ours, theirs = survivors(hf_logits(hf_model, ids), LAW), survivors(llama_logits(gguf, ids), LAW)
        for row in range(len(ids)):
            a = {int(i): p for i, p in zip(ours.ids[row], ours.probs[row], strict=True) if p > 0}
            b = {int(i): p for i, p in zip(theirs.ids[row], theirs.probs[row], strict=True) if p > 0}
            if set(a) != set(b):
                # Only the last token of the nucleus may differ, where the mass before it is 0.8 to a hair.
                assert abs(len(a) - len(b)) <= 1
                at_the_edge += 1
                continue
            variations.append(sum(abs(a[token] - b[token]) for token in a) / 2)
    assert len(variations) >= 200
    assert at_the_edge <= 0.02 * len(variations)
    assert np.mean(variations) < 0.005
    assert max(variations) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "llama_cpp"])
def test_first_tokens_are_drawn_as_often_as_the_law_says(engine, sources, hf_model):
    folder, tokenizer, gguf = sources
    ids = tokenizer.render([{"role": "user", "content": "Give me one short word."}])[1]
    law = survivors(hf_logits(hf_model, ids)[-1:], LAW)
    draws = 160
    requests = [Request(Prompt("p", "", tuple(ids)), index, derived_seed(7, "p", index)) for index in range(draws)]
    options = SamplerOptions(32, 1, tokenizer.end_ids, tokenizer.pad_id)
    sampler = open_sampler(engine, folder if engine == "hf" else gguf, options)
    counted = Counter(c.ids[0] for c in sampler.sample(requests, LAW, lambda n: None))
    sampler.close()
    expected = {int(i): draws * p for i, p in zip(law.ids[0], law.probs[0], strict=True) if p > 0}
    assert len(expected) >= 3, "the prompt is too predictable to test anything"
    if engine == "hf":
        assert set(counted) <= set(expected)
    common = [token for token, count in expected.items() if count >= 5]
    rest = draws - sum(expected[token] for token in common)
    statistic = sum((counted[token] - expected[token]) ** 2 / expected[token] for token in common)
    if rest >= 5:
        statistic += (draws - sum(counted[token] for token in common) - rest) ** 2 / rest
    degrees = len(common) - (rest < 5)
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
