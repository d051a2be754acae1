"""What vLLM's and llama.cpp's servers are asked, in the fields of each, with nothing of the law left to a default.

Fields: llama.cpp, tools/server/README.md (`/completion`, `/props`); vLLM, its OpenAI-compatible server
(`/v1/completions` with the extra parameters, `return_token_ids` since 0.10.2). Prompts go as token ids, so that no
server renders or tokenises anything.
"""

from __future__ import annotations

import http.client
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.sampling.server_http import ServerError, ask
from ssd_lite.errors import UserError
from ssd_lite.records import FinishReason, SamplingSettings

VLLM_MOST_LOGPROBS = 20
"""What vLLM gives unless its --max-logprobs says otherwise."""
TIES_SHOWN = 8
"""Tokens asked for beyond top_k: from them one sees what ties with the k-th."""
_SEEDS = 2**31 - 1
# What flags of llama.cpp's command line may set beside the samplers that a request names.
_FLAGS_OFF = {"dynatemp_range": 0.0, "mirostat": 0, "logit_bias": [], "ignore_eos": False}


Best = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Reply:
    """A completion: its token ids with the end token that ended it, and where asked for, the best tokens a position.

    `best` holds for each id the likeliest tokens at T = 1 without truncation, and with vLLM the id itself where it is
    none of them: their ids and log-probabilities; None where the server does not tell them. `goes_on` where the server
    ended at a token that ends nothing for this model, so that the rest is still to be asked for.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    best: list[Best | None] | None = None
    goes_on: bool = False

    def then(self, rest: Reply) -> Reply:
        """This and what was drawn after it."""
        best = None if self.best is None or rest.best is None else self.best + rest.best
        return replace(rest, ids=self.ids + rest.ids, prompt_tokens=self.prompt_tokens, best=best)


class Api(Protocol):
    """A dialect of completions over HTTP."""

    name: str
    context_length: int

    def best_for(self, top_k: int) -> int:
        """How many of the likeliest tokens to ask for where the law takes top_k of them."""
        ...

    def body(
        self, prompt: Sequence[int], settings: SamplingSettings, seed: int, end_ids: Sequence[int], best: int
    ) -> tuple[str, dict[str, Any]]:
        """Path and JSON of a request for one completion, with the `best` likeliest tokens beside each."""
        ...

    def reply(self, answer: Mapping[str, Any], end_ids: Sequence[int]) -> Reply:
        """The completion in an answer. Raises KeyError, TypeError, ValueError for one that is none."""
        ...


def find_api(connection: http.client.HTTPConnection) -> Api:
    """The dialect that the server speaks. Raises UserError for one that is neither."""
    try:
        props = ask(connection, "/props")
        return LlamaServer(int(props["default_generation_settings"]["n_ctx"]))
    except (ServerError, KeyError, TypeError):
        pass
    try:
        model = ask(connection, "/v1/models")["data"][0]
        return Vllm(str(model["id"]), int(model["max_model_len"]))
    except (ServerError, KeyError, TypeError, IndexError):
        raise UserError(
            "is neither llama.cpp's server (/props) nor vLLM (/v1/models with max_model_len).",
            where="server.command",
            next_step="Start llama-server or `vllm serve`.",
        ) from None


class LlamaServer:
    """llama.cpp's server by its own `/completion`."""

    name = "llama.cpp"

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def best_for(self, top_k: int) -> int:
        """See `Api`."""
        return top_k + TIES_SHOWN

    def body(
        self, prompt: Sequence[int], settings: SamplingSettings, seed: int, end_ids: Sequence[int], best: int
    ) -> tuple[str, dict[str, Any]]:
        """See `Api`. Only the samplers of the law run; every other one is off by not being in the list."""
        return "/completion", {
            "prompt": list(prompt),
            "n_predict": settings.max_new_tokens,
            "samplers": ["top_k", "temperature", "top_p", "min_p"],
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
            "repeat_penalty": 1.0,
            **_FLAGS_OFF,
            "seed": seed % _SEEDS,
            "n_probs": best,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
        }

    def reply(self, answer: Mapping[str, Any], end_ids: Sequence[int]) -> Reply:
        """See `Api`. It tells nothing of a token that ends inside a character, so places are found by their ids; and it
        ends at tokens that it takes for ends by their names, such as <file_sep>.
        """
        places = list(answer.get("completion_probabilities") or [])
        best: list[Best | None] = []
        for token in answer["tokens"] if places else ():
            told = places.pop(0) if places and places[0]["id"] == token else None
            pairs = [(entry["id"], entry["logprob"]) for entry in told["top_logprobs"]] if told else []
            best.append(_arrays(pairs))
        ended, tokens = answer["stop_type"] == "eos", answer["tokens"]
        goes_on = ended and bool(tokens) and not set(tokens) & set(end_ids)
        reply = _reply(tokens, ended and not goes_on, end_ids, answer["tokens_evaluated"], best)
        return replace(reply, goes_on=goes_on)


class Vllm:
    """vLLM by `/v1/completions`."""

    name = "vLLM"

    def __init__(self, model: str, context_length: int) -> None:
        self.model, self.context_length = model, context_length

    def best_for(self, top_k: int) -> int:
        """See `Api`. No more than every vLLM tells, unless top_k itself is more."""
        return max(top_k, min(top_k + TIES_SHOWN, VLLM_MOST_LOGPROBS))

    def body(
        self, prompt: Sequence[int], settings: SamplingSettings, seed: int, end_ids: Sequence[int], best: int
    ) -> tuple[str, dict[str, Any]]:
        """See `Api`. What is not sent, vLLM takes from the model's generation_config.json, so everything is.

        UserError for min-p with a nucleus: vLLM (v1/sample/sampler.py) cuts by min-p before top-p, the law after.
        """
        if settings.min_p > 0 and settings.top_p < 1:
            raise UserError(
                "vLLM applies min_p before top_p, the law of a recipe after it: together they are another law there.",
                where="sample.min_p",
                next_step="Set min_p to 0 or top_p to 1, or take llama.cpp's server.",
            )
        wanted = {"logprobs": best, "return_tokens_as_token_ids": True} if best else {}
        return "/v1/completions", {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_k": settings.top_k or -1,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "n": 1,
            "seed": seed % _SEEDS,
            "stop_token_ids": list(end_ids),
            "ignore_eos": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "stream": False,
            **wanted,
        }

    def reply(self, answer: Mapping[str, Any], end_ids: Sequence[int]) -> Reply:
        """See `Api`. A token is named `token_id:NUMBER` in the log-probabilities."""
        (choice,) = answer["choices"]
        places = (choice.get("logprobs") or {}).get("top_logprobs") or []
        best = [
            _arrays([(int(name.removeprefix("token_id:")), value) for name, value in (place or {}).items()])
            for place in places
        ]
        ended = choice["finish_reason"] == "stop"
        return _reply(choice["token_ids"], ended, end_ids, answer["usage"]["prompt_tokens"], best)


def _arrays(pairs: Sequence[tuple[int, float]]) -> Best | None:
    """The pairs that have a probability, likeliest first, as arrays; None where there is none.

    Equals stand by id: vLLM names the drawn token first, and an order that follows the draw would bend the law.
    """
    known = sorted((pair for pair in pairs if math.isfinite(pair[1])), key=lambda pair: (-pair[1], pair[0]))
    ids, values = [token for token, _ in known], [value for _, value in known]
    return (np.array(ids, dtype=np.int64), np.array(values, dtype=np.float64)) if known else None


def _reply(
    ids: Sequence[int], ended: bool, end_ids: Sequence[int], prompt_tokens: int, best: list[Best | None]
) -> Reply:
    """The completion up to its first end token. One that ended must have it, or training could not learn to stop."""
    numbers = [int(token) for token in ids]
    at = next((place for place, token in enumerate(numbers) if token in end_ids), None)
    if at is None:
        if ended or not numbers:
            raise ValueError("it ended without one of the model's end tokens")
        return Reply(tuple(numbers), "length", int(prompt_tokens), best or None)
    return Reply(tuple(numbers[: at + 1]), "stop", int(prompt_tokens), best[: at + 1] or None)
