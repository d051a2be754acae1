"""A conversation with one model: its history, and the next reply as pieces of text that come whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ssd_lite.errors import UserError
from ssd_lite.records import Message, SamplingSettings

if TYPE_CHECKING:
    from ssd_lite.engines.sampling.llama_cpp_sampler import LlamaCppSampler
    from ssd_lite.engines.tokenizer import ChatTokenizer


class _Pieces:
    """Tokens one by one as text that comes whole.

    Only the tokens since the last piece, and those of that piece as their context, are decoded again: decoding all of
    them for each would take a thinking model's 30,000 tokens to the square.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        """The text that the token completes; "" while a character lacks some of its bytes, which decode to U+FFFD."""
        self._waiting.append(token)
        piece = self.rest()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._context, self._waiting = self._waiting, []
        return piece

    def rest(self) -> str:
        """What is waiting, as it is."""
        before = self._tokenizer.decode(self._context, skip_special=True)
        return self._tokenizer.decode(self._context + self._waiting, skip_special=True)[len(before) :]


class Conversation:
    """The history, and the next reply as pieces of text. A turn's seed is the conversation's plus the turn's number."""

    def __init__(
        self, tokenizer: ChatTokenizer, sampler: LlamaCppSampler, settings: SamplingSettings, seed: int
    ) -> None:
        self._tokenizer, self._sampler, self._settings, self._seed = tokenizer, sampler, settings, seed
        self._turns = 0
        self.messages: list[Message] = []

    def reply(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Answer `text`; yields whole characters as they come. What was said until `stopped()` stays in the history."""
        self.messages, prompt = self._fitting([*self.messages, {"role": "user", "content": text}])
        self._turns += 1
        ids: list[int] = []
        pieces = _Pieces(self._tokenizer)
        for token in self._sampler.stream(prompt, self._settings, self._seed + self._turns):
            if token in self._tokenizer.end_ids:
                break
            ids.append(token)
            if piece := pieces.add(token):
                yield piece
            if stopped():
                break
        yield pieces.rest()
        self.messages.append({"role": "assistant", "content": self._tokenizer.decode(ids, skip_special=True)})

    def _fitting(self, messages: list[Message]) -> tuple[list[Message], Sequence[int]]:
        """The conversation and its ids, without the oldest pairs of turns where all would not fit into the context."""
        room = self._sampler.context_length - self._settings.max_new_tokens
        while True:
            ids = self._tokenizer.render(messages)[1]
            if len(ids) <= room:
                return messages, ids
            if len(messages) < 3:
                raise UserError(
                    f"the text has {len(ids)} tokens, the model's context leaves {max(room, 0)}.",
                    next_step="Say less, or lower --max-new-tokens.",
                )
            messages = messages[2:]
