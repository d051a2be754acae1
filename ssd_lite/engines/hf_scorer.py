"""Reads texts with transformers: right-padded batches, a piece of the length at a time, so that few logits live."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from ssd_lite.engines.position_facts import Facts, joined, read_block
from ssd_lite.engines.sampler import CountTokens
from ssd_lite.engines.scorer import BLOCK_BYTES, Text, check_context
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.errors import UserError
from ssd_lite.records import SamplingSettings

BATCH = 8


class HfScorer:
    """A model folder under transformers: bf16 on a CUDA card, fp32 on the CPU, as its samples are drawn."""

    def __init__(self, model: Path, threads: int | None = None) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self._device).eval()
        self._tuner = ThreadTuner(torch.set_num_threads, threads)

    def score(
        self, texts: Sequence[Text], laws: Sequence[SamplingSettings], count_tokens: CountTokens
    ) -> Iterator[tuple[int, Facts]]:
        """See `Scorer`. The longest texts come first, so that lack of memory shows at once."""
        check_context(texts, int(self._model.config.get_text_config().max_position_embeddings))
        waiting = sorted(range(len(texts)), key=lambda number: -len(texts[number].ids))
        batch_size = BATCH
        while waiting:
            batch = waiting[:batch_size]
            try:
                found = self._read([texts[number] for number in batch], laws, count_tokens)
            except torch.cuda.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UserError(
                        "the card has too little memory to read a single sample.", next_step="Take shorter ones."
                    ) from error
                batch_size = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            waiting = waiting[len(batch) :]
            yield from zip(batch, found, strict=True)

    @torch.inference_mode()
    def _read(self, texts: Sequence[Text], laws: Sequence[SamplingSettings], count_tokens: CountTokens) -> list[Facts]:
        """Facts of one batch.

        The cache carries the context from piece to piece. No mask is needed: under causal attention no token sees the
        padding to its right.
        """
        width = max(len(text.ids) for text in texts)
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
        vocabulary = int(self._model.config.get_text_config().vocab_size)
        piece = max(1, BLOCK_BYTES // (4 * vocabulary * len(texts)))
        cache = DynamicCache(config=self._model.config)
        found: list[list[Facts]] = [[] for _ in texts]
        for start in range(0, width, piece):
            started = time.monotonic()
            part = ids[:, start : start + piece].to(self._device)
            logits = self._model(input_ids=part, past_key_values=cache, use_cache=True).logits
            self._tuner.step(time.monotonic() - started, part.numel())
            for row, text in enumerate(texts):
                facts = _facts(logits[row], text, start, laws)
                found[row] += [facts] if facts is not None else []
            count_tokens(sum(max(0, min(len(text.ids) - start, part.shape[1])) for text in texts))
        return [joined(parts) for parts in found]

    def close(self) -> None:
        """Free the model."""
        del self._model
        if self._device == "cuda":
            torch.cuda.empty_cache()


def _facts(logits: Tensor, text: Text, start: int, laws: Sequence[SamplingSettings]) -> Facts | None:
    """Facts at the positions whose logits lie in this piece [length, vocabulary]; None where none does."""
    rows = text.rows
    here = (rows >= start) & (rows < start + len(logits))
    if not here.any():
        return None
    chosen = logits[torch.as_tensor(rows[here] - start, device=logits.device)].float().cpu().numpy()
    ask = text.ask[here] if text.ask is not None else None
    return read_block(chosen, text.tokens[here], text.positions[here], laws, ask)
