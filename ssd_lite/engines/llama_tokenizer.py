"""llama.cpp's tokenizer of a GGUF behind the few methods of `tokenizers.Tokenizer` that ChatTokenizer uses."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssd_lite.engines.gguf.quantise import Vocabulary


@dataclass(frozen=True)
class Added:
    """A token that stands beside the learnt ones; `special` ones are no text."""

    content: str
    special: bool


@dataclass(frozen=True)
class Encoded:
    """What encoding gives."""

    ids: list[int]


class LlamaTokenizer:
    """Any vocabulary that llama.cpp reads, SentencePiece's included; the file's weights are not loaded.

    With `encode_special_tokens` the names of control tokens are mere text.
    """

    def __init__(self, path: Path) -> None:
        self._view = Vocabulary(path)
        weakref.finalize(self, self._view.close)
        self.encode_special_tokens = False

    @cached_property
    def _tokens(self) -> list[str]:
        return [self._view.token(index) for index in range(self._view.size)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._tokens)}

    def get_added_tokens_decoder(self) -> dict[int, Added]:
        """Control tokens and those that a model's author added, by id."""
        kinds = {index: self._view.kind(index) for index in range(self._view.size)}
        added = {index: kind for index, kind in kinds.items() if kind in ("control", "added")}
        return {index: Added(self._tokens[index], kind == "control") for index, kind in added.items()}

    def get_vocab(self) -> dict[str, int]:
        """Token → id, without ids that only pad the embedding."""
        return {token: index for token, index in self._ids.items() if self._view.kind(index) != "unused"}

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""
        return self._ids.get(token)

    def id_to_token(self, index: int) -> str | None:
        """A token as the vocabulary writes it."""
        return self._tokens[index] if 0 <= index < len(self._tokens) else None

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Token ids of a text."""
        special = not self.encode_special_tokens
        return Encoded(self._view.tokenise(text, parse_special=special, add_special=add_special_tokens))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return self._view.text(ids, show_special=not skip_special_tokens)

    @property
    def template(self) -> str | None:
        """The chat template in the file."""
        return self._view.value("tokenizer.chat_template")

    @property
    def end_ids(self) -> list[int]:
        """Every token at which llama.cpp ends a reply."""
        return [index for index in range(self._view.size) if self._view.is_end(index)]

    def specials(self) -> dict[str, str]:
        """The tokens that a chat template may name."""
        named = {"bos_token": self._view.bos, "eos_token": self._view.eos, "pad_token": self._view.pad}
        return {name: self._view.token(index) for name, index in named.items() if index >= 0}


def open_tokenizer(path: Path) -> tuple[Any, str | None, dict[str, str], list[int]]:
    """Tokenizer, chat template, special tokens and end tokens of a GGUF. Raises UserError where llama.cpp cannot."""
    tokenizer = LlamaTokenizer(path)
    return tokenizer, tokenizer.template, tokenizer.specials(), tokenizer.end_ids
