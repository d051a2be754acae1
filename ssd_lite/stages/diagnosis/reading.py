"""What a diagnosis reads: a model's own samples, a reference at a low temperature, and the facts of their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from ssd_lite.errors import Stopped
from ssd_lite.interrupt import stop_requested
from ssd_lite.progress import Progress
from ssd_lite.records import Sample, SamplingSettings
from ssd_lite.stages.weights import Weights

if TYPE_CHECKING:
    from ssd_lite.engines.scoring.position_facts import Facts

MOST_SAMPLES = 64
"""Samples that are read unless --limit says otherwise."""
MOST_POSITIONS = 512
"""Positions of one completion, at even distances, so that one long completion does not outweigh all others."""
REFERENCE_SAMPLES = 16
"""Completions at the base's decoding for evaluation, which show what the model writes when it does not stray."""
TEMPERATURES = (0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
"""Of the curves."""


@dataclass(frozen=True)
class LawSet:
    """The laws that are measured: the sampling law first, then the curves; `curves` are their numbers in `laws`."""

    laws: tuple[SamplingSettings, ...]
    curves: dict[str, list[int]]


def law_set(sampling: SamplingSettings, evaluation: SamplingSettings | None) -> LawSet:
    """Curves over TEMPERATURES: `train` under the sampling law's truncation, `evaluate` under the tuned model's."""
    laws, curves = [sampling], {}
    for name, law in (("train", sampling), ("evaluate", evaluation)):
        if law is None:
            continue
        along = [replace(law, temperature=t, max_new_tokens=sampling.max_new_tokens) for t in TEMPERATURES]
        laws += [one for one in along if one not in laws]
        curves[name] = [laws.index(one) for one in along]
    return LawSet(tuple(laws), curves)


def in_drawn_order(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """All samples in an order drawn with `seed`, however they came to disk: a smaller limit takes some of a larger."""
    ordered = sorted(samples, key=lambda sample: sample.key)
    return Random(seed).sample(ordered, len(ordered))


def read(
    model: Weights,
    samples: Sequence[Sample],
    laws: LawSet,
    label: str,
    *,
    threads: int | None,
    ask: Sequence[Facts] | None = None,
) -> list[Facts]:
    """Facts of each sample under this model; with `ask` also its view of the top tokens in those facts.

    Raises Stopped after a signal; nothing is kept then, a diagnosis reads anew.
    """
    from ssd_lite.engines.scoring.score import score
    from ssd_lite.engines.scoring.scorer import Text, spread_positions

    texts = [
        Text(
            sample.prompt_ids,
            sample.completion_ids,
            spread_positions(len(sample.completion_ids), MOST_POSITIONS),
            ask[number].top_ids if ask is not None else None,
        )
        for number, sample in enumerate(samples)
    ]
    found: dict[int, Facts] = {}
    with Progress(len(texts), "samples", label) as progress:

        def count(tokens: int) -> None:
            progress.advance(0, tokens=tokens)
            if stop_requested():
                raise Stopped(f"{label} stopped; the samples are kept, the same command reads them again.")

        for number, facts in score(model.engine, model.file, texts, laws.laws, count, threads):
            found[number] = facts
            progress.advance()
    return [found[number] for number in range(len(texts))]


def generations(samples: Sequence[Sample], facts: Sequence[Facts]) -> dict[str, Any]:
    """How the completions themselves look: number, length, share cut off, and the model's entropy at T 1 on them.

    `entropy` is a mean over completions, each as its own mean; `entropy_error` its standard error.
    """
    from ssd_lite.engines.scoring.measures import along, mean_entropy

    lengths = [len(sample.completion_ids) for sample in samples]
    entropy, error = mean_entropy(facts)
    return {
        "samples": len(samples),
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "cap_rate": round(sum(sample.finish_reason == "length" for sample in samples) / len(samples), 4),
        "entropy": entropy,
        "entropy_error": error,
        "entropy_by_quarter": along(facts, lengths),
    }
