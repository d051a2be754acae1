"""The chat template inside a GGUF against the model's own: same text, same tokens as llama.cpp reads it, one bos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.engines.gguf.quantise import Vocabulary
from ssd_lite.engines.tokenizer import ChatTokenizer, template_environment
from ssd_lite.errors import UserError
from ssd_lite.records import Message

_CONVERT = (
    "Do not serve this file. Check the tokenizer files of the model folder, and export again under another --out."
)


@dataclass(frozen=True)
class Conversation:
    """Messages without tools, and the variables a chat template gets beside them."""

    name: str
    messages: tuple[Message, ...]
    variables: dict[str, Any]


@dataclass(frozen=True)
class TemplateCheck:
    """What was compared: conversations that print the same, those that both templates refuse, against what.

    `extra_bos` is the token that llama.cpp puts in front of a prompt although the template does not, else "".
    """

    equal: int
    refused: int
    reference: str
    extra_bos: str


@dataclass(frozen=True)
class _Rendered:
    """A conversation as the model's own template gives it: None where it refuses."""

    text: str | None
    ids: tuple[int, ...]


def conversations() -> list[Conversation]:
    """Six that templates treat differently: one turn, a system message, several turns, both, thinking on and off."""
    user: Message = {"role": "user", "content": "Add 2 and 3.\n\n```python\nx = {{ 1 }}\n```\n"}
    answer: Message = {"role": "assistant", "content": "<think>\nSums.\n</think>\n\nIt is 5.  Naïve, 北京 🚀"}
    again: Message = {"role": "user", "content": "  And 'twice' <b>that</b>?"}
    system: Message = {"role": "system", "content": "Be brief."}
    plain: Message = {"role": "assistant", "content": "It is 10."}
    return [
        Conversation("one turn", (user,), {}),
        Conversation("a system message", (system, user), {}),
        Conversation("several turns", (user, answer, again), {}),
        Conversation("a system message and several turns", (system, user, plain, again, answer, user), {}),
        Conversation("thinking on", (user, answer, again), {"enable_thinking": True}),
        Conversation("thinking off", (system, again), {"enable_thinking": False}),
    ]


def check_templates(files: Sequence[Path], folder: Path) -> TemplateCheck | None:
    """Compare the template of each GGUF with that of the model folder; None where the model has no template at all.

    The model's own is rendered by transformers, or where that is not installed by `ChatTokenizer`; the GGUF's from the
    text and special tokens that llama.cpp reads out of it. Raises UserError where text or tokens differ, or where a
    prompt would begin with two bos.
    """
    render, reference = _own_renderer(folder)
    asked = conversations()
    wanted = [render(conversation) for conversation in asked]
    found = [_check_file(file, asked, wanted) for file in files]
    if not found or found[0] is None:
        if ChatTokenizer.load(folder).chat_template is not None and found:
            raise UserError("holds no chat template.", where=str(files[0]), next_step=_CONVERT)
        return None
    refused = sum(rendered.text is None for rendered in wanted)
    return TemplateCheck(len(asked) - refused, refused, reference, found[0])


def _check_file(file: Path, asked: Sequence[Conversation], wanted: Sequence[_Rendered]) -> str | None:
    """The extra bos of one file, "" where there is none; None where it has no template."""
    view = Vocabulary(file)
    try:
        template = view.value("tokenizer.chat_template")
        if template is None:
            return None
        specials = {"bos_token": view.token(view.bos), "eos_token": view.token(view.eos)}
        extra = ""
        for conversation, own in zip(asked, wanted, strict=True):
            text = render_template(template, conversation, specials)
            if text != own.text:
                raise UserError(
                    f"its chat template prints otherwise than the model's own for {conversation.name}: "
                    f"{_difference(own.text, text)}.",
                    where=str(file),
                    next_step=_CONVERT,
                )
            if text is not None:
                extra = _check_ids(file, view, text, own.ids, conversation.name) or extra
        return extra
    finally:
        view.close()


def render_template(template: str, conversation: Conversation, specials: dict[str, str]) -> str | None:
    """The text of a conversation with the start of an answer; None where the template refuses it."""
    from jinja2.exceptions import TemplateError

    values = {"tools": None, "documents": None, "add_generation_prompt": True, **specials, **conversation.variables}
    try:
        text: str = template_environment().from_string(template).render(messages=list(conversation.messages), **values)
    except TemplateError:
        return None
    return text


def served_text(view: Vocabulary, text: str) -> str:
    """A rendered prompt as llama.cpp's server tokenises it: it takes off a bos that it is going to add itself."""
    bos = view.token(view.bos)
    return text.removeprefix(bos) if view.adds_bos and bos else text


def _check_ids(file: Path, view: Vocabulary, text: str, own: tuple[int, ...], name: str) -> str:
    """The bos that llama.cpp adds though the template does not, or "". UserError for two bos or other differences."""
    ids = view.tokenise(served_text(view, text), parse_special=True, add_special=True)
    if view.bos >= 0 and ids[:2] == [view.bos, view.bos]:
        raise UserError(
            f"a prompt would begin with two {view.token(view.bos)} (bos): the chat template prints it, and it is added "
            "once more.",
            where=str(file),
            next_step="Set add_bos_token to false in tokenizer_config.json, or take bos_token out of the template, and "
            "export again under another --out.",
        )
    if view.adds_bos and ids[:1] == [view.bos] and tuple(ids[1:]) == own:
        return view.token(view.bos)
    if tuple(ids) != own:
        raise UserError(
            f"llama.cpp reads the prompt of {name} as other tokens than the model's tokenizer.",
            where=str(file),
            next_step=_CONVERT,
        )
    return ""


def _own_renderer(folder: Path) -> tuple[Callable[[Conversation], _Rendered], str]:
    try:
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (ImportError, ValueError, OSError):  # not installed, or a tokenizer class it does not know
        return _by_own_means(ChatTokenizer.load(folder)), "this program's own renderer"

    from jinja2.exceptions import TemplateError

    def render(conversation: Conversation) -> _Rendered:
        try:
            text = tokenizer.apply_chat_template(
                list(conversation.messages), tokenize=False, add_generation_prompt=True, **conversation.variables
            )
        except (TemplateError, ValueError):  # ValueError: the tokenizer has no template
            return _Rendered(None, ())
        return _Rendered(text, tuple(tokenizer(text, add_special_tokens=False).input_ids))

    return render, f"transformers {transformers.__version__}"


def _by_own_means(tokenizer: ChatTokenizer) -> Callable[[Conversation], _Rendered]:
    def render(conversation: Conversation) -> _Rendered:
        try:
            text, ids = tokenizer.render(conversation.messages, **conversation.variables)
        except UserError:
            return _Rendered(None, ())
        return _Rendered(text, tuple(ids))

    return render


def _difference(own: str | None, other: str | None) -> str:
    if own is None or other is None:
        return "only one of them refuses it"
    place = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    start = max(0, place - 10)
    return f"{other[start : place + 30]!r} instead of {own[start : place + 30]!r}"
