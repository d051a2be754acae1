"""Samples with llama.cpp, many completions at once: a finished one is replaced at once, a prompt is computed once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.llama_context import LlamaContext, LlamaModel
from ssd_lite.engines.sampling.law import Uniforms, survivors
from ssd_lite.engines.sampling.sampler import Completion, CountTokens, Engine, Request, SamplerOptions, check_lengths
from ssd_lite.engines.sampling.targets import TargetsBuilder
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.records import SamplingSettings

KV_BUDGET_BYTES = 2 * 2**30
PROMPT_BLOCK = 512
"""Tokens of a prompt that are read at once: the least that a context takes."""


@dataclass
class _Running:
    """A completion in a slot: its tokens so far, the last of which is not yet in the cache."""

    request: Request
    uniforms: Uniforms
    ids: list[int] = field(default_factory=list)
    entropy_sum: float = 0.0
    survivors_sum: int = 0
    targets: TargetsBuilder | None = None

    @property
    def next_position(self) -> int:
        return len(self.request.prompt.ids) + len(self.ids) - 1

    def completion(self, ended: bool) -> Completion:
        return Completion(
            self.request,
            tuple(self.ids),
            "stop" if ended else "length",
            self.entropy_sum / len(self.ids),
            self.survivors_sum / len(self.ids),
            self.targets.build() if self.targets is not None else None,
        )


class LlamaCppSampler:
    """A GGUF model under llama.cpp."""

    name: Engine = "llama_cpp"

    def __init__(self, model: Path, options: SamplerOptions) -> None:
        self._model, self._options = LlamaModel(model), options
        self.context_length = self._model.context_length

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, count_tokens: CountTokens
    ) -> Iterator[Completion]:
        """Answer each request once; see `Sampler`. Requests of one prompt should stand side by side to share it."""
        if not requests:
            return
        check_lengths(requests, settings, self.context_length)
        length = max(len(request.prompt.ids) for request in requests) + settings.max_new_tokens
        affordable = KV_BUDGET_BYTES // (self._model.kv_bytes_per_token() * length)
        slots = max(1, min(self._options.batch_size, len(requests), affordable))
        context = LlamaContext(self._model, sequences=slots, length=length)
        try:
            yield from _Loop(context, self._options, settings, count_tokens, slots).run(requests)
        finally:
            context.close()

    def stream(self, prompt_ids: Sequence[int], settings: SamplingSettings, seed: int) -> Iterator[int]:
        """Token ids of one completion as they are drawn, the end token included. For chat."""
        context = LlamaContext(self._model, sequences=1, length=len(prompt_ids) + settings.max_new_tokens)
        try:
            uniforms = Uniforms(seed)
            tuner = ThreadTuner(context.set_threads, self._options.threads)
            logits = context.prefill(0, prompt_ids)[None]
            for position in range(len(prompt_ids), len(prompt_ids) + settings.max_new_tokens):
                token = int(survivors(logits, settings).draw([next(uniforms)])[0])
                yield token
                if token in self._options.end_ids:
                    return
                started = time.monotonic()
                logits = context.step([(0, token, position)])
                tuner.step(time.monotonic() - started, 1)
        finally:
            context.close()

    def close(self) -> None:
        """Free the model."""
        self._model.close()


class _Loop:
    """Continuous batching: admit, step, draw, hand out, until nothing is left."""

    def __init__(
        self, context: LlamaContext, options: SamplerOptions, settings: SamplingSettings, count: CountTokens, slots: int
    ) -> None:
        self._context, self._settings, self._count = context, settings, count
        self._end_ids, self._keep_targets = frozenset(options.end_ids), options.keep_targets
        self._tuner = ThreadTuner(context.set_threads, options.threads)
        self._running: dict[int, _Running] = {}
        self._free = list(range(slots))
        self._last_prompt: tuple[tuple[int, ...], npt.NDArray[np.float32]] | None = None

    def run(self, requests: Sequence[Request]) -> Iterator[Completion]:
        waiting = deque(requests)
        while waiting or self._running:
            while waiting and self._free:
                yield from self._admit(waiting.popleft())
            if self._running:
                yield from self._step()

    def _admit(self, request: Request) -> Iterator[Completion]:
        slot = heappop(self._free)  # low numbers first leave few gaps between sequences
        logits = self._fill(slot, request.prompt.ids)
        targets = TargetsBuilder() if self._keep_targets else None
        self._running[slot] = _Running(request, Uniforms(request.seed), targets=targets)
        yield from self._draw([slot], logits[None])

    def _fill(self, slot: int, prompt: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Put the prompt into a slot, from a running sibling where there is one; the logits after it."""
        if self._last_prompt is not None and self._last_prompt[0] == prompt:
            sibling = next((s for s, r in self._running.items() if r.request.prompt.ids == prompt), None)
            if sibling is not None:
                self._context.copy(sibling, slot, len(prompt))
                return self._last_prompt[1]
        logits = np.empty((0, 0), dtype=np.float32)
        for start in range(0, len(prompt), PROMPT_BLOCK):
            self._count(0)  # nothing is drawn yet, but a stop is heard while a long prompt is read
            logits = self._context.read(slot, prompt[start : start + PROMPT_BLOCK], start, {len(prompt) - 1})
        self._last_prompt = (prompt, logits[0].copy())
        return self._last_prompt[1]

    def _step(self) -> Iterator[Completion]:
        # llama.cpp computes sequences together only where their numbers follow one another in the batch: in falling
        # order each of 16 was computed alone, which took 198 ms a step instead of 90.
        slots = sorted(self._running)
        started = time.monotonic()
        logits = self._context.step([(s, self._running[s].ids[-1], self._running[s].next_position) for s in slots])
        self._tuner.step(time.monotonic() - started, len(slots))
        yield from self._draw(slots, logits)

    def _draw(self, slots: list[int], logits: npt.NDArray[np.float32]) -> Iterator[Completion]:
        law = survivors(logits, self._settings)
        tokens = law.draw([next(self._running[slot].uniforms) for slot in slots])
        self._count(len(slots))
        entropies, counts = law.entropies(), law.counts()
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            running = self._running[slot]
            running.ids.append(int(token))
            running.entropy_sum += float(entropies[row])
            running.survivors_sum += int(counts[row])
            if running.targets is not None:
                running.targets.add(law.ids[row], law.probs[row])
            ended = int(token) in self._end_ids
            if ended or len(running.ids) == self._settings.max_new_tokens:
                del self._running[slot]
                self._context.clear(slot)
                heappush(self._free, slot)
                yield running.completion(ended)
