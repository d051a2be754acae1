"""The tokenizer and chat template of a model, without torch or transformers: `tokenizers` or llama.cpp, and jinja2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.records import Message

_THINKING_TAG = re.compile(r"</?think(?:ing)?>", re.I)


class ChatTokenizer:
    """Renders chat messages to token ids and back, as the model's own files say.

    `end_ids` are all tokens that end a completion: generation_config.json's list, config.json's and the tokenizer's;
    `end_id` is the tokenizer's own, with which its template ends a turn. `enable_thinking` goes to the template, unless
    it is None.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        specials: dict[str, str],
        end_ids: Iterable[int],
        enable_thinking: bool | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        special = {index: token for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        tags = {index for index, token in special.items() if _THINKING_TAG.fullmatch(token.content)}
        # A text without the tags that a model calls special would not tell its thinking from its answer.
        self._hidden = frozenset(special) - tags if tags else None
        self.chat_template = template
        self._specials = specials
        self.end_ids = tuple(sorted(set(end_ids)))
        self.bos_id = self._id_of("bos_token")
        pad = self._id_of("pad_token")
        self.pad_id: int = self.end_ids[0] if pad is None else pad
        eos = self._id_of("eos_token")
        self.end_id: int = eos if eos in self.end_ids else self.end_ids[0]

    @classmethod
    def load(cls, folder: Path, enable_thinking: bool | None = None, *, lenient: bool = False) -> ChatTokenizer:
        """That of a model folder, or of a GGUF file as llama.cpp reads it.

        Of a folder it takes tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json and
        config.json. Raises UserError where `enable_thinking` is set and the template does not know it; `lenient` leaves
        it out.
        """
        end_ids: Iterable[int]
        if folder.is_file():
            from ssd_lite.engines.llama_tokenizer import open_tokenizer

            tokenizer, template, specials, end_ids = open_tokenizer(folder)
        else:
            tokenizer, template, specials, end_ids = cls._read(folder)
        if not end_ids:
            raise UserError("names no end token, so a completion could never stop.", where=str(folder))
        if enable_thinking is not None and "enable_thinking" not in (template or ""):
            if not lenient:
                raise _no_such_switch(folder)
            enable_thinking = None
        return cls(tokenizer, template, specials, end_ids, enable_thinking)

    @staticmethod
    def _read(folder: Path) -> tuple[Any, str | None, dict[str, str], Iterable[int]]:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingLibraryError("tokenizers", needed_for="Reading a tokenizer", extra="train") from error
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(
                "has no tokenizer.json.", where=str(folder), next_step="Take a model with a fast tokenizer."
            )
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        config = _read_json(folder / "tokenizer_config.json")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        specials = {name: token for name in names if (token := _token_text(config.get(name)))}
        return tokenizer, _template(folder, config), specials, _end_ids(folder, tokenizer, specials)

    def _id_of(self, name: str) -> int | None:
        text = self._specials.get(name)
        token: int | None = self._tokenizer.token_to_id(text) if text else None
        return token

    def render(self, messages: Sequence[Message], **variables: Any) -> tuple[str, list[int]]:
        """The text of a conversation with the start of the assistant's turn, and its ids.

        `variables` go to the template, beside `enable_thinking`. Raises UserError where the model has no template.
        """
        if self.chat_template is None:
            raise UserError(
                "the model has no chat template.", next_step="Take an instruct model; a template is never made up here."
            )
        from jinja2.exceptions import TemplateError

        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
        values |= {**self._specials, **self._variables, **variables}
        try:
            text = template_environment().from_string(self.chat_template).render(messages=list(messages), **values)
        except TemplateError as error:
            raise UserError(
                f"the model's chat template refuses this conversation: {error}.",
                next_step="Change its roles or their order; the model may know no system role.",
            ) from error
        return text, self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that already holds its special tokens; none are added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text in which the names of special tokens are mere text."""
        self._tokenizer.encode_special_tokens = True
        try:
            return self.encode(text)
        finally:
            self._tokenizer.encode_special_tokens = False

    def token(self, token_id: int) -> str:
        """The token of an id as the vocabulary writes it; "" for an id that it has not."""
        return self._tokenizer.id_to_token(token_id) or ""

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, None where it has none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def numbers_like(self, other: ChatTokenizer) -> bool:
        """Do both give every token the same id? Compares model, added tokens and decoder of the tokenizer.json files,
        or the vocabularies where one is that of a GGUF.

        How a text is cut before it is numbered plays no part: it changes no id's meaning.
        """
        if not all(hasattr(one._tokenizer, "to_str") for one in (self, other)):
            return bool(self._tokenizer.get_vocab() == other._tokenizer.get_vocab())
        mine, theirs = (json.loads(one._tokenizer.to_str()) for one in (self, other))
        return all(mine[part] == theirs[part] for part in ("model", "added_tokens", "decoder"))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids; `skip_special` leaves out end and control tokens, but no tags of thinking."""
        if skip_special and self._hidden is not None:
            ids, skip_special = [token for token in ids if token not in self._hidden], False
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text


def _no_such_switch(folder: Path) -> UserError:
    return UserError(
        f"the chat template of {folder.name} does not mention enable_thinking, so the key would change nothing.",
        where="model.enable_thinking",
        next_step="Leave it out (null): the model thinks always or never, as its template says.",
    )


def template_environment() -> Any:
    """jinja2 as transformers sets it up for chat templates, so that a template gives the same text here."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"is not JSON ({error}).", where=str(file)) from error
    return value if isinstance(value, dict) else {}


def _token_text(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default is the chat
        return next((str(item["template"]) for item in template if item.get("name") == "default"), None)
    return template


def _end_ids(folder: Path, tokenizer: Any, specials: dict[str, str]) -> set[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    token = tokenizer.token_to_id(specials["eos_token"]) if "eos_token" in specials else None
    return found | ({token} if token is not None else set())
