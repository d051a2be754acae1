"""Reads what a model makes of given texts, position by position: one function for both engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.sampling.sampler import CountTokens, Engine
from ssd_lite.engines.scoring.position_facts import Bools, Facts, joined, read_block
from ssd_lite.engines.scoring.scorer import Scorer, T, Take, Text
from ssd_lite.errors import UserError
from ssd_lite.records import SamplingSettings


def visit(
    engine: Engine,
    model: Path,
    texts: Sequence[Text],
    take: Take[T],
    count_tokens: CountTokens,
    threads: int | None = None,
) -> Iterator[tuple[int, list[T]]]:
    """Read `texts` with the model in the folder (hf) or GGUF file (llama_cpp) `model`; see `Scorer.visit`.

    Raises MissingLibraryError if the library is not there, UserError where a text is longer than the model's context.
    """
    scorer = _open(engine, model, threads)
    try:
        yield from scorer.visit(texts, take, count_tokens)
    finally:
        scorer.close()


def score(
    engine: Engine,
    model: Path,
    texts: Sequence[Text],
    laws: Sequence[SamplingSettings],
    count_tokens: CountTokens,
    threads: int | None = None,
) -> Iterator[tuple[int, Facts]]:
    """Number and facts of each text once, in any order; raises as `visit` does.

    `laws` are those whose support is measured, at least one.
    """

    def take(number: int, logits: npt.NDArray[np.float32], here: Bools) -> Facts:
        text = texts[number]
        ask = text.ask[here] if text.ask is not None else None
        return read_block(logits, text.tokens[here], text.positions[here], laws, ask)

    for number, parts in visit(engine, model, texts, take, count_tokens, threads):
        yield number, joined(parts)


def _open(engine: Engine, model: Path, threads: int | None) -> Scorer:
    match engine:
        case "hf":
            from ssd_lite.engines.scoring.hf_scorer import HfScorer

            return HfScorer(model, threads)
        case "llama_cpp":
            from ssd_lite.engines.scoring.llama_cpp_scorer import LlamaCppScorer

            return LlamaCppScorer(model, threads)
        case _:
            raise UserError(f"{engine!r} is no engine that tells whole laws; hf and llama_cpp do.")
