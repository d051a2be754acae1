"""Does the server draw from the law it was asked for? Tried by its own log-probabilities before anything is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ssd_lite.engines.sampling.sampler import Request
from ssd_lite.engines.sampling.server_api import TIES_SHOWN, VLLM_MOST_LOGPROBS, Api, Reply
from ssd_lite.engines.sampling.server_law import laws_of
from ssd_lite.errors import UserError
from ssd_lite.records import SamplingSettings

PROMPTS, TOKENS = 8, 64
MOST_TOP_K = VLLM_MOST_LOGPROBS - TIES_SHOWN
"""The largest top-k tried: what ties with its last token must be told, too, or nobody knows where the nucleus ends."""
MOST_OUTSIDE = 0.02
"""Share of tokens that our law cannot have drawn, however ties at its edge are parted. A right server gives none, but
for kernels that cut by an approximate pivot."""
MOST_IN_DOUBT = 0.5
"""Share of tokens that hang on a tie: 2 to 5 % with logits of bfloat16 (135M model at T 1.6, tests/test_server_law.py).
With more than this little of the law would be tried."""
MOST_DEVIATIONS = 6.0
"""Standard deviations of the summed surprise from the laws' entropy; by chance once in 500 million probes."""


@dataclass(frozen=True)
class Seen:
    """What a probe saw: tokens, those outside of the law, those that hang on a tie at its edge, and how far the
    surprise of the others lies from their law's entropy.
    """

    tokens: int
    outside: int
    in_doubt: int
    deviations: float

    @property
    def right(self) -> bool:
        """Whether this law could have drawn that."""
        return (
            self.tokens > 0
            and self.outside <= MOST_OUTSIDE * self.tokens
            and self.in_doubt <= MOST_IN_DOUBT * self.tokens
            and abs(self.deviations) <= MOST_DEVIATIONS
        )


def compare(replies: Sequence[Reply], settings: SamplingSettings, asked: int) -> Seen:
    """Drawn tokens against the laws that the server's own `asked` log-probabilities a position give.

    Given that a token is none that hangs on a tie, its law is known exactly, so those alone tell of the surprise.
    """
    tokens = outside = in_doubt = 0
    surprise = entropy = variance = 0.0
    for reply in replies:
        for token, law in zip(reply.ids, laws_of(reply, settings, asked), strict=True):
            if law is None:
                continue
            tokens += 1
            chance = law.chance(token)
            if chance == 0:
                outside += not law.allows(token)
                in_doubt += law.allows(token)
                continue
            mean, spread = law.surprise()
            surprise -= math.log(chance)
            entropy += mean
            variance += spread
    deviations = (surprise - entropy) / math.sqrt(variance) if variance > 1e-9 else 0.0
    return Seen(tokens, outside, in_doubt, deviations)


def refuse_another_law(
    api: Api,
    ask: Callable[[Sequence[Request], SamplingSettings, int], Sequence[Reply]],
    requests: Sequence[Request],
    settings: SamplingSettings,
) -> Seen:
    """Let the server answer some prompts under the law, shortened, with its best tokens beside. Raises UserError.

    A law of more than 12 tokens is tried with top-k 12 instead: temperature, top-p and min-p are the same.
    """
    k = min(settings.top_k or MOST_TOP_K, MOST_TOP_K)
    asked = k + TIES_SHOWN
    tried = replace(settings, top_k=k, max_new_tokens=min(TOKENS, settings.max_new_tokens))
    step = max(1, len(requests) // PROMPTS)
    replies = ask(requests[::step][:PROMPTS], tried, asked)
    try:
        seen = compare(replies, tried, asked)
    except ValueError as error:
        raise UserError(
            f"{error}, so its law cannot be tried.",
            where="server.command",
            next_step=f"Let it tell {asked} of them (vLLM: --max-logprobs {asked}).",
        ) from error
    if seen.in_doubt > MOST_IN_DOUBT * seen.tokens:
        raise UserError(
            f"{seen.in_doubt} of {seen.tokens} tokens of {api.name} hang on a tie of its log-probabilities, so its law "
            "cannot be tried.",
            where="server.command",
            next_step="Let it tell them as finely as its logits are (16 bits are enough), or take another engine.",
        )
    if not seen.right:
        raise UserError(
            f"{api.name} does not draw from the law of this recipe: {seen.outside} of {seen.tokens} tokens lie outside "
            f"of its truncation, {seen.in_doubt} hang on a tie at its edge, and the surprise of the others is "
            f"{seen.deviations:+.1f} standard deviations from its entropy.",
            where="server.command",
            next_step="Take flags off that change sampling (penalties, logit bias, speculative decoding), or take "
            "another engine.",
        )
    return seen
