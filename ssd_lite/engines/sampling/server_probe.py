"""Does the server draw from the law it was asked for? Tried by its own log-probabilities before anything is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssd_lite.engines.sampling.law import Survivors, truncate
from ssd_lite.engines.sampling.sampler import Request
from ssd_lite.engines.sampling.server_api import VLLM_MOST_LOGPROBS, Api, Reply
from ssd_lite.errors import UserError
from ssd_lite.records import SamplingSettings

PROMPTS, TOKENS = 8, 64
MOST_OUTSIDE = 0.02
"""Share of tokens outside of our truncation: rounding may move the last survivor, as between our own engines."""
MOST_DEVIATIONS = 6.0
"""Standard deviations of the summed surprise from the laws' entropy; by chance once in 500 million probes."""


@dataclass(frozen=True)
class Seen:
    """What a probe saw: tokens, those outside of the law, and how far the surprise lies from the law's entropy."""

    tokens: int
    outside: int
    deviations: float

    @property
    def right(self) -> bool:
        """Whether this law could have drawn that."""
        return (
            self.tokens > 0 and self.outside <= MOST_OUTSIDE * self.tokens and abs(self.deviations) <= MOST_DEVIATIONS
        )


def laws_of(reply: Reply, settings: SamplingSettings) -> list[Survivors | None]:
    """The law of each position from the server's best tokens, which must be at least top_k many; None if not told.

    Raises ValueError where it tells none at all.
    """
    if reply.best is None or len(reply.best) != len(reply.ids):
        raise ValueError("the server tells no log-probabilities for its tokens")
    k = settings.top_k or None
    return [None if best is None else truncate(best[0][None, :k], best[1][None, :k], settings) for best in reply.best]


def compare(replies: Sequence[Reply], settings: SamplingSettings) -> Seen:
    """Drawn tokens against the laws that the server's own log-probabilities give."""
    tokens = outside = 0
    surprise = entropy = variance = 0.0
    for reply in replies:
        for token, law in zip(reply.ids, laws_of(reply, settings), strict=True):
            if law is None:
                continue
            tokens += 1
            (place,) = np.nonzero((law.ids[0] == token) & (law.probs[0] > 0))
            if not len(place):
                outside += 1
                continue
            probs = law.probs[0][law.probs[0] > 0]
            surprises = -np.log(probs)
            mean = float((probs * surprises).sum())
            surprise -= math.log(law.probs[0][place[0]])
            entropy += mean
            variance += float((probs * surprises**2).sum()) - mean**2
    deviations = (surprise - entropy) / math.sqrt(variance) if variance > 1e-9 else 0.0
    return Seen(tokens, outside, deviations)


def refuse_another_law(
    api: Api,
    ask: Callable[[Sequence[Request], SamplingSettings, int], Sequence[Reply]],
    requests: Sequence[Request],
    settings: SamplingSettings,
) -> Seen:
    """Let the server answer some prompts under the law, shortened, with its best tokens beside. Raises UserError.

    A law of more tokens than servers tell is tried with top-k 20 instead: temperature, top-p and min-p are the same.
    """
    k = min(settings.top_k or VLLM_MOST_LOGPROBS, VLLM_MOST_LOGPROBS)
    tried = replace(settings, top_k=k, max_new_tokens=min(TOKENS, settings.max_new_tokens))
    step = max(1, len(requests) // PROMPTS)
    replies = ask(requests[::step][:PROMPTS], tried, k)
    try:
        seen = compare(replies, tried)
    except ValueError as error:
        raise UserError(
            f"{error}, so its law cannot be tried.",
            where="server.command",
            next_step=f"Let it tell {k} of them (vLLM: --max-logprobs {k}).",
        ) from error
    if not seen.right:
        raise UserError(
            f"{api.name} does not draw from the law of this recipe: {seen.outside} of {seen.tokens} tokens lie outside "
            f"of its truncation, and their surprise is {seen.deviations:+.1f} standard deviations from its entropy.",
            where="server.command",
            next_step="Take flags off that change sampling (penalties, logit bias, speculative decoding), or take "
            "another engine.",
        )
    return seen
