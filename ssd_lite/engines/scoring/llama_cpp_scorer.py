"""Reads texts with llama.cpp: one sequence after another, all wanted positions of a block in one decode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssd_lite.engines.llama_context import LlamaContext, LlamaModel
from ssd_lite.engines.sampling.sampler import CountTokens
from ssd_lite.engines.scoring.scorer import BLOCK_BYTES, T, Take, Text, check_context
from ssd_lite.engines.threads import ThreadTuner

MOST_ROWS = 256


class LlamaCppScorer:
    """A GGUF model under llama.cpp."""

    def __init__(self, model: Path, threads: int | None = None) -> None:
        self._model, self._threads = LlamaModel(model), threads

    def visit(self, texts: Sequence[Text], take: Take[T], count_tokens: CountTokens) -> Iterator[tuple[int, list[T]]]:
        """See `Scorer`. The cache holds one sequence as long as the longest text."""
        check_context(texts, self._model.context_length)
        if not texts:
            return
        rows = max(1, min(MOST_ROWS, BLOCK_BYTES // (4 * self._model.vocabulary_size)))
        length = max(len(text.ids) for text in texts)
        context = LlamaContext(self._model, sequences=1, length=length, batch=rows)
        tuner = ThreadTuner(context.set_threads, self._threads)
        try:
            for number, text in enumerate(texts):
                context.clear(0)
                parts = []
                for start in range(0, len(text.ids), rows):
                    started = time.monotonic()
                    read = text.ids[start : start + rows]
                    here = (text.rows >= start) & (text.rows < start + len(read))
                    logits = context.read(0, read, start, set(text.rows[here].tolist()))
                    tuner.step(time.monotonic() - started, len(read))
                    if here.any():
                        parts.append(take(number, logits, here))
                    count_tokens(len(read))
                yield number, parts
        finally:
            context.close()

    def close(self) -> None:
        """Free the model."""
        self._model.close()
