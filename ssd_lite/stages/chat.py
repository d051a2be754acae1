"""Chat with a run, a model folder, a GGUF or a packaged model: streaming, with history, through llama.cpp."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.conversation.gguf_file import file_decoding
from ssd_lite.stages.conversation.side_by_side import NARROWEST, Columns, visible
from ssd_lite.stages.conversation.turns import Conversation
from ssd_lite.stages.exports.check import PLAIN_DECODING
from ssd_lite.user_path import user_path

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALL_ENOUGH = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
_HELP = "Ctrl-C stops a reply, Ctrl-D ends"


@dataclass(frozen=True)
class ChatOptions:
    """What the command line may set; None takes the run's value."""

    base: bool = False
    compare: bool = False
    prompt: str | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    threads: int | None = None
    enable_thinking: bool | None = None


@dataclass(frozen=True)
class ChatModel:
    """What answers: a GGUF, which holds tokenizer and template too, its decoding, and one line that says so."""

    gguf: Path
    settings: SamplingSettings
    title: str
    threads: int | None
    enable_thinking: bool | None


def chat(target: str | Path, options: ChatOptions) -> str:
    """Talk until the end of input, or answer `options.prompt`. Text goes to stdout as it comes; the last reply is
    returned, with `options.compare` that of the tuned model.

    Ctrl-C stops a reply and not the program. Needs no torch. Raises UserError for a target that is no model.
    """
    return next(reversed(chat_replies(target, options).values()), "")


def chat_replies(target: str | Path, options: ChatOptions) -> dict[str, str]:
    """The same; the last replies by who gave them, "tuned" (or any model) last, empty where nothing was asked."""
    if options.base and options.compare:
        raise UserError("and --base exclude each other: --compare asks both.", where="--compare")
    if options.compare and not _is_run(target):
        raise UserError("compares a run's base and tuned model.", where="--compare", next_step="Name a run folder.")
    if options.base and not _is_run(target):
        raise UserError("chats with a run's base model.", where="--base", next_step="Name a run folder, or no --base.")
    models = {"base" if options.base else "tuned": open_model(target, options)}
    if options.compare:
        models = {"base": open_model(target, replace(options, base=True)), **models}
    with ExitStack() as stack:
        conversations = {name: stack.enter_context(_conversation(model, options)) for name, model in models.items()}
        if options.prompt is not None:
            return _show(conversations, options.prompt)
        print("\n".join(model.title for model in models.values()) + f" · {_HELP}", file=sys.stderr)
        return _talk(conversations)


@contextmanager
def _conversation(model: ChatModel, options: ChatOptions) -> Iterator[Conversation]:
    from ssd_lite.engines.sampling.llama_cpp_sampler import LlamaCppSampler
    from ssd_lite.engines.sampling.sampler import SamplerOptions
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(model.gguf, model.enable_thinking)
    sampler = LlamaCppSampler(model.gguf, SamplerOptions(1, model.threads, tokenizer.end_ids, tokenizer.pad_id))
    try:
        yield Conversation(tokenizer, sampler, model.settings, options.seed)
    finally:
        sampler.close()


def _is_run(target: str | Path) -> bool:
    return (user_path(target, "MODEL") / "recipe.yaml").is_file()


def open_model(target: str | Path, options: ChatOptions) -> ChatModel:
    """Find what shall answer: of a run its tuned model under evaluate.tuned, or its base under evaluate.base."""
    from ssd_lite.engines.model_source import gguf_file, resolve_model

    if not _is_run(target):
        source = resolve_model(str(target), key="MODEL")
        # A GGUF answers itself; a folder is converted once.
        gguf = source.gguf or gguf_file(source, "q8_0", threads=options.threads)
        own = file_decoding(gguf, PLAIN_DECODING)
        title = source.name if Path(source.name).name == source.note else f"{source.name} ({source.note})"
        model = _model(gguf, own or PLAIN_DECODING, title, options, None)
        return replace(model, title=f"{model.title}, from the file") if own else model
    run = RunFolder.open(user_path(target, "MODEL"))
    threads = options.threads or run.recipe.threads
    if options.base:
        source = resolve_model(run.recipe.model.name, run.recipe.model.revision)
        gguf = gguf_file(source, run.recipe.model.gguf_type, threads=threads)
        return _model(gguf, run.recipe.evaluate.base, f"base: {source.name}", options, run)
    gguf = _tuned(run, run.recipe.model.gguf_type if options.compare else None)
    return _model(gguf, run.recipe.evaluate.tuned, f"tuned: {gguf.name}", options, run)


def _tuned(run: RunFolder, gguf_type: str | None) -> Path:
    """A file of the tuned model: of this type, or the best of the small ones that are there."""
    from ssd_lite.stages.export import TYPES, tuned_gguf

    files = {path.stem.rsplit("-", 1)[-1]: path for path in sorted(run.gguf.glob("[!.]*.gguf"))}
    # An adapter and a matrix lie there too, and hidden files that a cut export left.
    there = {name: path for name, path in files.items() if name in TYPES}
    for name in (*_SMALL_ENOUGH, *there) if gguf_type is None else ():
        if name in there:
            return there[name]
    return tuned_gguf(run, gguf_type or "q8_0")


def _model(gguf: Path, decoding: Decoding, title: str, options: ChatOptions, run: RunFolder | None) -> ChatModel:
    limit = options.max_new_tokens or (run.recipe.evaluate.max_new_tokens if run else 1024)
    return ChatModel(
        gguf,
        decoding.settings(limit),
        f"{title} · {decoding.words()}",
        options.threads or (run.recipe.threads if run else None),
        run.recipe.model.enable_thinking if run and options.enable_thinking is None else options.enable_thinking,
    )


def _show(conversations: Mapping[str, Conversation], text: str) -> dict[str, str]:
    """Print the replies as they come and return them by name; Ctrl-C ends them early."""
    pressed = False

    def stop(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        width = shutil.get_terminal_size().columns
        if len(conversations) > 1 and sys.stdout.isatty() and width >= NARROWEST:
            return _in_columns(conversations, text, width, lambda: pressed)
        return {name: _alone(name, conversations, text, lambda: pressed) for name in conversations}
    finally:
        signal.signal(signal.SIGINT, before)


def _alone(name: str, conversations: Mapping[str, Conversation], text: str, stopped: Callable[[], bool]) -> str:
    """One reply after the other, under their names where there are two."""
    if len(conversations) > 1:
        print(f"{name}:")
    parts = []
    for piece in conversations[name].reply(text, stopped):
        parts.append(piece)
        print(visible(piece), end="", flush=True)
    print()
    return "".join(parts)


def _in_columns(
    conversations: Mapping[str, Conversation], text: str, width: int, stopped: Callable[[], bool]
) -> dict[str, str]:
    """Both replies at once, a token of each in turn."""

    def write(row: str) -> None:
        print(row, end="", flush=True)

    columns = Columns(list(conversations), width, write)
    streams = {name: conversation.reply(text, stopped) for name, conversation in conversations.items()}
    replies = dict.fromkeys(conversations, "")
    sides = {name: side for side, name in enumerate(conversations)}
    while streams:
        for name in list(streams):
            piece = next(streams[name], None)
            if piece is None:
                columns.end(sides[name])
                del streams[name]
            else:
                replies[name] += piece
                columns.add(sides[name], piece)
    return replies


def _talk(conversations: Mapping[str, Conversation]) -> dict[str, str]:
    replies: dict[str, str] = {}
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return replies
        except KeyboardInterrupt:
            print()
            continue
        if text.strip():
            try:
                replies = _show(conversations, text)
            except UserError as error:
                print(error.message, file=sys.stderr)
