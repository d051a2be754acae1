"""Reads texts with transformers: right-padded batches, a piece of the length at a time, so that few logits live."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from ssd_lite.engines.devices import enough_card_memory
from ssd_lite.engines.sampling.sampler import CountTokens
from ssd_lite.engines.scoring.scorer import BLOCK_BYTES, T, Take, Text, check_context
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.errors import UserError

BATCH = 8


class HfScorer:
    """A model folder under transformers: bf16 on a CUDA card, fp32 on the CPU, as its samples are drawn."""

    def __init__(self, model: Path, threads: int | None = None) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        logging.disable_progress_bar()
        with enough_card_memory("the model", "Take a smaller model.", where="model.name"):
            self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self._device).eval()
        # transformers 5.2x calls it `cache`, and will refuse the old name from 5.40.
        known = inspect.signature(self._model.forward).parameters
        self._cache_keyword = "cache" if "cache" in known else "past_key_values"
        self._tuner = ThreadTuner(torch.set_num_threads, threads)

    def visit(self, texts: Sequence[Text], take: Take[T], count_tokens: CountTokens) -> Iterator[tuple[int, list[T]]]:
        """See `Scorer`. The longest texts come first, so that lack of memory shows at once."""
        check_context(texts, int(self._model.config.get_text_config().max_position_embeddings))
        waiting = sorted(range(len(texts)), key=lambda number: -len(texts[number].ids))
        batch_size = BATCH
        while waiting:
            batch = waiting[:batch_size]
            try:
                found = self._read({number: texts[number] for number in batch}, take, count_tokens)
            except torch.cuda.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UserError(
                        "the card has too little memory to read a single sample.", next_step="Take shorter ones."
                    ) from error
                batch_size = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            waiting = waiting[len(batch) :]
            yield from found.items()

    @torch.inference_mode()
    def _read(self, texts: Mapping[int, Text], take: Take[T], count_tokens: CountTokens) -> dict[int, list[T]]:
        """What is taken of one batch, by number.

        The cache carries the context from piece to piece. No mask is needed: under causal attention no token sees the
        padding to its right.
        """
        width = max(len(text.ids) for text in texts.values())
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts.values()):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
        vocabulary = int(self._model.config.get_text_config().vocab_size)
        piece = max(1, BLOCK_BYTES // (4 * vocabulary * len(texts)))
        cache = {self._cache_keyword: DynamicCache(config=self._model.config)}
        found: dict[int, list[T]] = {number: [] for number in texts}
        for start in range(0, width, piece):
            started = time.monotonic()
            part = ids[:, start : start + piece].to(self._device)
            logits = self._model(input_ids=part, use_cache=True, **cache).logits
            self._tuner.step(time.monotonic() - started, part.numel())
            for row, (number, text) in enumerate(texts.items()):
                here = (text.rows >= start) & (text.rows < start + part.shape[1])
                if here.any():
                    chosen = logits[row][torch.as_tensor(text.rows[here] - start, device=logits.device)]
                    found[number].append(take(number, chosen.float().cpu().numpy(), here))
            count_tokens(sum(max(0, min(len(text.ids) - start, part.shape[1])) for text in texts.values()))
        return found

    def close(self) -> None:
        """Free the model."""
        del self._model
        if self._device == "cuda":
            torch.cuda.empty_cache()
