"""What a server's log-probabilities tell of the law it drew from, also where tokens tie at the law's edge.

Logits of bfloat16 tie often, and servers part ties each in its own way: some keep every token that ties with the k-th,
some exactly k, and the nucleus may end between two equals. So three sets: the tokens that survive however ties are
parted (sure), those that may (possible), and all others. The law on the sure ones is known but for a factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.sampling.law import Survivors, truncate
from ssd_lite.engines.sampling.server_api import Best, Reply
from ssd_lite.records import SamplingSettings

_ROUNDING = 1e-5
"""Of a cumulated probability, as servers add them up in float32."""


@dataclass(frozen=True)
class ToldLaw:
    """The law of one position: `law` as our own engines cut it, [1, k]; `ids` [n], likeliest first.

    `sure` [n]: their probabilities given that the token is one of those that survive however ties are parted, zero for
    the others. `possible` [n]: whether they may survive at all.
    """

    law: Survivors
    ids: npt.NDArray[np.int64]
    sure: npt.NDArray[np.float64]
    possible: npt.NDArray[np.bool_]

    def allows(self, token: int) -> bool:
        """Whether the token may have been drawn."""
        return bool(self.possible[self.ids == token].any())

    def chance(self, token: int) -> float:
        """Its probability among the sure ones; 0 for one that is not sure."""
        return float(self.sure[self.ids == token].sum())

    def surprise(self) -> tuple[float, float]:
        """Mean (the entropy, in nats) and variance of -log of the sure tokens' probabilities."""
        probs = self.sure[self.sure > 0]
        surprises = -np.log(probs)
        mean = float((probs * surprises).sum())
        return mean, float((probs * surprises**2).sum()) - mean**2

    def target(self, token: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What to train on where `token` was drawn: ids and probabilities, likeliest first.

        The law on the sure tokens if it is one of them, else the token alone. The mean of that over draws is the
        server's law, whichever ties it kept: E[target] = P(sure) q(. | sure) + P(not sure) q(. | not sure) = q.
        """
        if self.chance(token) == 0:
            return np.array([token]), np.ones(1)
        return self.ids[self.sure > 0], self.sure[self.sure > 0]


def laws_of(reply: Reply, settings: SamplingSettings, asked: int) -> list[ToldLaw | None]:
    """The law of each position from the `asked` likeliest tokens, at least top_k many; None where they were not told.

    Raises ValueError where the server tells none at all.
    """
    if reply.best is None or len(reply.best) != len(reply.ids):
        raise ValueError("the server tells no log-probabilities for its tokens")
    return [None if best is None else told_law(best, settings, asked) for best in reply.best]


def told_law(best: Best, settings: SamplingSettings, asked: int) -> ToldLaw:
    """The law of one position from its `asked` likeliest tokens; a server may add the drawn one to them."""
    ids, told = best
    k = min(settings.top_k or asked, len(told))
    law = truncate(ids[None, :k], told[None, :k], settings)
    edge, known = told[k - 1], told[:asked]
    ties_end = len(known) < asked or known[-1] < edge  # else there may be more of them than were told
    split = not ties_end or int((known >= edge).sum()) > k
    reached = told >= edge
    ids, told = ids[reached], told[reached]
    weights = np.exp((told - told[0]) / settings.temperature)
    least, most = weights[:k].sum(), weights.sum() if ties_end else np.inf
    before = np.concatenate([[0.0], np.cumsum(weights)])  # the weight of all tokens ahead of each place
    above, upto = (before[np.searchsorted(-told, -told, side)] for side in ("left", "right"))
    sure, possible = (told > edge) | (not split), np.ones(len(told), dtype=bool)
    if settings.top_p < 1.0:
        # The first of its equals needs least room in the nucleus, the last of them most.
        sure &= (upto - weights) / least < settings.top_p - _ROUNDING
        possible = above / most < settings.top_p + _ROUNDING
    if settings.min_p > 0.0:
        sure &= weights >= settings.min_p * (1 + _ROUNDING)
        possible &= weights >= settings.min_p * (1 - _ROUNDING)
    kept = np.where(sure, weights, 0.0)
    return ToldLaw(law, ids, kept / max(kept.sum(), np.finfo(float).tiny), possible)
