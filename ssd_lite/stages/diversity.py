"""How much the completions of a problem differ from each other: distinct n-grams and self-BLEU, in words and signs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_TOKEN = re.compile(r"\w+|[^\w\s]")
BLEU_ORDER = 4
MOST_COMPLETIONS = 20
"""Self-BLEU compares each with all others: more completions of a problem than these are left out."""


def words(text: str) -> list[str]:
    """Words and single signs, white space dropped; case is kept, because in code it means something."""
    return _TOKEN.findall(text)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams as a share of all n-grams of these texts together (Li et al., arXiv 1510.03055).

    1 where no n-gram stands twice; falls as texts repeat themselves or each other. None where no text has n tokens.
    Longer texts repeat more, so compare arms of similar length.
    """
    grams = [gram for text in texts for gram in _grams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text against all others as references (Zhu et al., "Texygen", arXiv 1802.01886).

    0 for texts that share no word, 1 for equal ones. BLEU as Papineni et al. 2002 with the closest reference's length;
    a precision without a match counts half a match (Lin and Och 2004's smoothing of counts, here 0.5), since short
    programs often share no 4-gram. None for fewer than two texts that have a word.
    """
    tokens = [found for text in texts[:MOST_COMPLETIONS] if (found := words(text))]
    if len(tokens) < 2:
        return None
    counts = [[Counter(_grams(one, n)) for n in range(1, BLEU_ORDER + 1)] for one in tokens]
    lengths = [len(one) for one in tokens]
    scores = [_bleu(number, counts, lengths) for number in range(len(tokens))]
    return sum(scores) / len(scores)


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def _bleu(number: int, counts: Sequence[Sequence[Counter[tuple[str, ...]]]], lengths: Sequence[int]) -> float:
    others = [other for other in range(len(lengths)) if other != number]
    logs = []
    for order in range(BLEU_ORDER):
        mine = counts[number][order]
        total = sum(mine.values())
        if not total:
            continue  # a text of two words has no 3-gram
        most: Counter[tuple[str, ...]] = Counter()
        for other in others:
            most |= counts[other][order]
        matches = sum(min(count, most[gram]) for gram, count in mine.items())
        if order == 0 and matches == 0:
            return 0.0
        logs.append(math.log((matches or 0.5) / total))
    own = lengths[number]
    closest = min((abs(lengths[other] - own), lengths[other]) for other in others)[1]
    penalty = 1.0 if own >= closest else math.exp(1 - closest / own)
    return penalty * math.exp(sum(logs) / len(logs))
