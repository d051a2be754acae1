"""What each server is asked, field by field: nothing of the law is left to a server's own default."""

from __future__ import annotations

import pytest

from ssd_lite.engines.sampling.server_api import LlamaServer, Vllm
from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import SamplingSettings

LAW = SamplingSettings(temperature=1.6, top_k=20, top_p=0.8, min_p=0.05, max_new_tokens=33)
OPEN = SamplingSettings(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0, max_new_tokens=1)
SEED = 2**31 + 6  # beyond what llama.cpp and vLLM take: it goes round


def test_llama_cpp_is_asked_for_the_law_in_its_order_and_nothing_else() -> None:
    path, body = LlamaServer(512).body([5, 9, 17], LAW, SEED, [2], 28)
    assert path == "/completion"
    assert body == {
        "prompt": [5, 9, 17],
        "n_predict": 33,
        # Its default chain takes the temperature last, which is another law; one that is not named does not run.
        "samplers": ["top_k", "temperature", "top_p", "min_p"],
        "temperature": 1.6,
        "top_k": 20,
        "top_p": 0.8,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "dynatemp_range": 0.0,
        "mirostat": 0,
        "logit_bias": [],
        "ignore_eos": False,
        "seed": 7,
        "n_probs": 28,
        "return_tokens": True,
        "cache_prompt": True,
        "stream": False,
    }


def test_llama_cpp_is_told_what_is_off_as_well() -> None:
    """Left out, it would be top_k 40, top_p 0.95 and min_p 0.05."""
    _, body = LlamaServer(512).body([5], OPEN, 0, [2], 0)
    law = ("temperature", "top_k", "top_p", "min_p")
    assert [body[name] for name in law] == [0.7, 0, 1.0, 0.0]
    assert (body["n_probs"], body["seed"], body["n_predict"]) == (0, 0, 1)


def test_the_order_is_the_one_that_exported_files_carry() -> None:
    _, body = LlamaServer(512).body([5], LAW, 0, [2], 0)
    exported = Decoding(temperature=1.6, top_k=20, top_p=0.8, min_p=0.05).samplers()
    assert ";".join(body["samplers"]) == exported == "top_k;temperature;top_p;min_p"


def test_vllm_is_told_what_is_off_as_well() -> None:
    """What is left out it takes from generation_config.json; -1 is its word for no top-k."""
    path, body = Vllm("m", 512).body([5], OPEN, SEED, [2, 3], 0)
    assert path == "/v1/completions"
    law = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    assert [body[name] for name in law] == [0.7, -1, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert (body["seed"], body["stop_token_ids"]) == (7, [2, 3])
    assert "logprobs" not in body
    _, body = Vllm("m", 512).body([5], OPEN, SEED, [2, 3], 20)
    assert (body["logprobs"], body["return_tokens_as_token_ids"]) == (20, True)


def test_vllm_is_not_asked_for_min_p_within_a_nucleus() -> None:
    with pytest.raises(UserError, match="min_p before top_p"):
        Vllm("m", 512).body([5], LAW, 0, [2], 0)
