"""Chat with a run, a model folder, a GGUF or a packaged model: streaming, with history, through llama.cpp."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import Message, SamplingSettings
from ssd_lite.run_folder import RunFolder

if TYPE_CHECKING:
    from ssd_lite.engines.llama_cpp_sampler import LlamaCppSampler
    from ssd_lite.engines.tokenizer import ChatTokenizer

# Where no recipe says how to decode: the paper's law for an untuned instruct model.
_PLAIN_DECODING = Decoding(temperature=0.7)
_SMALL_ENOUGH = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")


@dataclass(frozen=True)
class ChatOptions:
    """What the command line may set; None takes the run's value."""

    base: bool = False
    prompt: str | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    threads: int | None = None
    enable_thinking: bool | None = None


@dataclass(frozen=True)
class ChatModel:
    """What answers: a GGUF, the folder of its tokenizer and template, its decoding, and one line that says so."""

    gguf: Path
    folder: Path
    settings: SamplingSettings
    title: str
    threads: int | None
    enable_thinking: bool | None


def chat(target: str | Path, options: ChatOptions) -> str:
    """Talk until the end of input, or answer `options.prompt` and return the reply. Text goes to stdout as it comes.

    Ctrl-C stops a reply and not the program. Needs no torch. Raises UserError for a target that is no model.
    """
    model = open_model(target, options)
    from ssd_lite.engines.llama_cpp_sampler import LlamaCppSampler
    from ssd_lite.engines.sampler import SamplerOptions
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(model.folder, model.enable_thinking)
    sampler_options = SamplerOptions(
        batch_size=1, threads=model.threads, end_ids=tokenizer.end_ids, pad_id=tokenizer.pad_id
    )
    sampler = LlamaCppSampler(model.gguf, sampler_options)
    try:
        conversation = Conversation(tokenizer, sampler, model.settings, options.seed)
        if options.prompt is not None:
            return _show(conversation, options.prompt)
        print(model.title, file=sys.stderr)
        return _talk(conversation)
    finally:
        sampler.close()


def open_model(target: str | Path, options: ChatOptions) -> ChatModel:
    """Find what shall answer: of a run its tuned model under evaluate.tuned, or its base under evaluate.base."""
    from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model

    path = Path(target).expanduser()
    run = RunFolder.open(path) if (path / "recipe.yaml").is_file() else None
    if run is None:
        source = resolve_model(str(target))
        # A GGUF answers itself; a folder is converted once.
        gguf = source.gguf or gguf_file(source, "q8_0", threads=options.threads)
        return _model(gguf, hf_folder(source), _PLAIN_DECODING, f"{source.name} ({source.note})", options, None)
    threads = options.threads or run.recipe.threads
    if options.base:
        source = resolve_model(run.recipe.model.name, run.recipe.model.revision)
        gguf = gguf_file(source, run.recipe.model.gguf_type, threads=threads)
        return _model(gguf, hf_folder(source), run.recipe.evaluate.base, f"base: {source.name}", options, run)
    gguf = _tuned(run)
    return _model(gguf, run.merged, run.recipe.evaluate.tuned, f"tuned: {gguf.name}", options, run)


def _tuned(run: RunFolder) -> Path:
    from ssd_lite.stages.export import tuned_gguf

    there = {path.stem.rsplit("-", 1)[-1]: path for path in sorted(run.gguf.glob("*.gguf"))}
    for gguf_type in (*_SMALL_ENOUGH, *there):
        if gguf_type in there:
            return there[gguf_type]
    return tuned_gguf(run, "q8_0")


def _model(
    gguf: Path, folder: Path, decoding: Decoding, title: str, options: ChatOptions, run: RunFolder | None
) -> ChatModel:
    limit = options.max_new_tokens or (run.recipe.evaluate.max_new_tokens if run else 1024)
    threads = options.threads or (run.recipe.threads if run else None)
    return ChatModel(
        gguf,
        folder,
        decoding.settings(limit),
        f"{title} · {decoding.words()} · Ctrl-C stops a reply, Ctrl-D ends",
        threads,
        run.recipe.model.enable_thinking if run and options.enable_thinking is None else options.enable_thinking,
    )


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


def _show(conversation: Conversation, text: str) -> str:
    """Print a reply as it comes and return it; Ctrl-C ends it early."""
    pressed = False

    def stop(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, stop)
    parts = []
    try:
        for piece in conversation.reply(text, lambda: pressed):
            parts.append(piece)
            print(visible(piece), end="", flush=True)
    finally:
        signal.signal(signal.SIGINT, before)
    print()
    return "".join(parts)


def visible(text: str) -> str:
    """A model's text with control characters shown instead of sent to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _talk(conversation: Conversation) -> str:
    reply = ""
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return reply
        except KeyboardInterrupt:
            print()
            continue
        if text.strip():
            try:
                reply = _show(conversation, text)
            except UserError as error:
                print(error.message, file=sys.stderr)
