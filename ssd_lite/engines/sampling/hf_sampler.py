"""Samples with transformers' `generate` in left-padded batches; the draw is ours, so that law and seeds are too."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria

from ssd_lite.engines.devices import enough_card_memory
from ssd_lite.engines.sampling.law import Survivors, Uniforms, survivors, truncate
from ssd_lite.engines.sampling.sampler import Completion, CountTokens, Engine, Request, SamplerOptions, check_lengths
from ssd_lite.engines.sampling.targets import TargetsBuilder
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.errors import Stopped, UserError
from ssd_lite.progress import tell
from ssd_lite.records import SamplingSettings

PADDING_DISTANCE = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Total variation of a law that rounding may make, since another shape of a batch is another rounding."""


class HfSampler:
    """A model folder under transformers: bf16 on a CUDA card, fp32 on the CPU."""

    name: Engine = "hf"

    def __init__(self, model: Path, options: SamplerOptions) -> None:
        self._options = options
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._number_format = torch.bfloat16 if self._device == "cuda" else torch.float32
        with enough_card_memory("the model", "Take a smaller model, or one in fewer bits.", where="model.name"):
            self._model = AutoModelForCausalLM.from_pretrained(model, dtype=self._number_format).to(self._device).eval()
        # `generate` fills what a configuration leaves open from the model's own generation_config.json: penalties,
        # forbidden words, a time limit.
        self._model.generation_config = GenerationConfig()
        self.context_length = int(self._model.config.get_text_config().max_position_embeddings)
        self._tuner = ThreadTuner(torch.set_num_threads, options.threads)

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, count_tokens: CountTokens
    ) -> Iterator[Completion]:
        """Answer each request once, the longest prompts first, so that lack of memory shows at once."""
        check_lengths(requests, settings, self.context_length)
        waiting = sorted(requests, key=lambda request: -len(request.prompt.ids))
        batch_size = self._batch_size(waiting)
        while waiting:
            batch = waiting[:batch_size]
            draw = _Draw(batch, settings, self._options, count_tokens, self._tuner)
            try:
                self._generate(batch, settings, draw)
            except Stopped:
                yield from draw.completions(ended_only=True)
                raise
            except torch.cuda.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UserError(
                        "the card has too little memory for a single completion.", next_step="Lower max_new_tokens."
                    ) from error
                batch_size = len(batch) // 2
                torch.cuda.empty_cache()
                # Under a long budget memory runs out late: what has ended by then is not made again.
                ended = draw.completions(ended_only=True)
                done = {(one.request.prompt.problem_id, one.request.index) for one in ended}
                waiting = [r for r in waiting if (r.prompt.problem_id, r.index) not in done]
                yield from ended
                continue
            waiting = waiting[len(batch) :]
            yield from draw.completions()

    def _batch_size(self, longest_first: Sequence[Request]) -> int:
        """That of the options; 1, with a warning, for a model that answers otherwise where padding stands before.

        Wrong masks or positions under left padding are a frequent bug of model code, and give worse samples silently.
        """
        wanted = self._options.batch_size
        if not longest_first or wanted == 1 or len(longest_first[0].prompt.ids) == len(longest_first[-1].prompt.ids):
            return wanted
        short = longest_first[-1]
        try:
            padded, alone = self._first_law([longest_first[0], short])[1], self._first_law([short])[0]
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return wanted  # the batches are halved until they fit
        distance = 0.5 * float((padded - alone).abs().sum())
        if distance <= PADDING_DISTANCE[self._number_format]:
            return wanted
        tell(
            f"Warning: this model's next token depends on the padding before a prompt (total variation {distance:.2f}),"
            " so each completion is drawn alone, which is slow. An update of transformers may mend it.\n"
        )
        return 1

    @torch.inference_mode()
    def _first_law(self, batch: Sequence[Request]) -> Any:
        """Probabilities [rows, vocabulary] of the first token of each, at T = 1, through `generate` as samples are."""
        ids, mask = self._padded(batch)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=1,
            pad_token_id=self._options.pad_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return found.logits[0].float().softmax(dim=-1)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request], settings: SamplingSettings, draw: _Draw) -> None:
        ids, mask = self._padded(batch)
        self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._config(settings),
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=[draw.all_ended],
        )

    def _padded(self, batch: Sequence[Request]) -> tuple[Any, Any]:
        """Prompts and attention mask [rows, width] on the device, padded on the left."""
        width = max(len(request.prompt.ids) for request in batch)
        ids = torch.full((len(batch), width), self._options.pad_id)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt.ids) :] = torch.tensor(request.prompt.ids)
            mask[row, width - len(request.prompt.ids) :] = 1
        return ids.to(self._device), mask.to(self._device)

    def _config(self, settings: SamplingSettings) -> Any:
        """Greedy over the one token that `_Draw` leaves; the usual fields that bend a law are sent as off, too."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=settings.max_new_tokens,
            max_length=None,
            eos_token_id=list(self._options.end_ids),
            pad_token_id=self._options.pad_id,
            bos_token_id=None,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            return_dict_in_generate=False,
        )

    def close(self) -> None:
        """Free the model."""
        del self._model
        if self._device == "cuda":
            torch.cuda.empty_cache()


class _Draw(LogitsProcessor):
    """Draws one token a row with the row's own uniform numbers and leaves only it possible."""

    def __init__(
        self,
        batch: Sequence[Request],
        settings: SamplingSettings,
        options: SamplerOptions,
        count_tokens: CountTokens,
        tuner: ThreadTuner,
    ) -> None:
        self._batch, self._settings, self._count, self._tuner = batch, settings, count_tokens, tuner
        self._end_ids = frozenset(options.end_ids)
        self._uniforms = [Uniforms(request.seed) for request in batch]
        self._ids: list[list[int]] = [[] for _ in batch]
        self._entropy, self._survivors = np.zeros(len(batch)), np.zeros(len(batch))
        self._targets = [TargetsBuilder() for _ in batch] if options.keep_targets else None
        self._open = set(range(len(batch)))
        self._started = time.monotonic()
        self.all_ended = _AllEnded(self)
        count_tokens(0)  # nothing is drawn yet, but a stop is heard before the prompts are read

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        law = _law(scores, self._settings)
        # A row that has ended still draws, to keep rows aligned; what it draws is thrown away.
        drawn = law.draw([next(uniforms) for uniforms in self._uniforms])
        entropies, counts = law.entropies(), law.counts()
        written = tuple(self._open)
        for row in written:
            self._ids[row].append(int(drawn[row]))
            self._entropy[row] += entropies[row]
            self._survivors[row] += counts[row]
            if self._targets is not None:
                self._targets[row].add(law.ids[row], law.probs[row])
            if self._ids[row][-1] in self._end_ids:
                self._open.discard(row)
        self._count(len(written))
        now = time.monotonic()
        self._tuner.step(now - self._started, len(self._batch))
        self._started = now
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, torch.as_tensor(drawn, device=scores.device)[:, None], 0.0)

    @property
    def ended(self) -> bool:
        """True when every row has drawn an end token."""
        return not self._open

    def completions(self, *, ended_only: bool = False) -> list[Completion]:
        """What was drawn, row by row; `ended_only` leaves out rows that a stop cut short."""
        return [self._completion(row) for row in range(len(self._batch)) if not (ended_only and row in self._open)]

    def _completion(self, row: int) -> Completion:
        ids = self._ids[row]
        return Completion(
            self._batch[row],
            tuple(ids),
            "stop" if ids[-1] in self._end_ids else "length",
            float(self._entropy[row]) / len(ids),
            float(self._survivors[row]) / len(ids),
            self._targets[row].build() if self._targets is not None else None,
        )


class _AllEnded(StoppingCriteria):
    def __init__(self, draw: _Draw) -> None:
        self._draw = draw

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self._draw.ended, device=input_ids.device, dtype=torch.bool)


def _law(scores: Any, settings: SamplingSettings) -> Survivors:
    """The law over logits [rows, vocabulary]; only the top-k leave the device where there is a top-k."""
    if not settings.top_k:
        return survivors(scores.float().cpu().numpy(), settings)
    values, ids = torch.topk(scores.float(), min(settings.top_k, scores.shape[1]), dim=1)
    return truncate(ids.cpu().numpy(), values.cpu().numpy(), settings)
