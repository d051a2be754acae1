"""What a sampling engine is: requests in, completions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ssd_lite.engines.sampling.targets import Targets
from ssd_lite.errors import UserError
from ssd_lite.records import FinishReason, Prompt, SamplingSettings

Engine = Literal["hf", "llama_cpp", "server"]
CountTokens = Callable[[int], None]


@dataclass(frozen=True)
class Request:
    """One completion to make: the `index`-th answer to a prompt, with its derived seed."""

    prompt: Prompt
    index: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """What an engine gives back for a request.

    `ids` ends with the end token exactly where `finish_reason` is "stop"; `entropy_nats` is the mean entropy of the
    laws its tokens were drawn from, `survivors` the mean number of tokens they left, None where nobody counted;
    `targets` holds those laws where SamplerOptions.keep_targets asks for them.
    """

    request: Request
    ids: tuple[int, ...]
    finish_reason: FinishReason
    entropy_nats: float | None
    survivors: float | None
    targets: Targets | None = None


class Sampler(Protocol):
    """An engine with a loaded model. Completions come as they finish, in any order."""

    name: Engine
    context_length: int

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, count_tokens: CountTokens
    ) -> Iterator[Completion]:
        """Answer each request once. `count_tokens(n)` is told of work done, often."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True)
class ServerOptions:
    """A server to start: its command's words from the values of their places, and what it is given.

    `context` are the tokens of the longest prompt and completion, `log` the file for what it prints.
    """

    words: Callable[[dict[str, str]], list[str]]
    start_limit_s: float
    context: int
    log: Path


@dataclass(frozen=True)
class SamplerOptions:
    """How an engine works, none of which changes the law."""

    batch_size: int
    threads: int | None
    end_ids: tuple[int, ...]
    pad_id: int
    keep_targets: bool = False
    server: ServerOptions | None = None


def check_lengths(requests: Sequence[Request], settings: SamplingSettings, context_length: int) -> None:
    """Refuse, before anything runs, prompts that leave no room for max_new_tokens in the model's context."""
    longest_allowed = context_length - settings.max_new_tokens
    long = {r.prompt.problem_id: len(r.prompt.ids) for r in requests if len(r.prompt.ids) > longest_allowed}
    if long:
        worst = max(long, key=lambda problem: long[problem])
        raise UserError(
            f"{len(long)} prompts do not fit: {worst} has {long[worst]} tokens, and with max_new_tokens "
            f"{settings.max_new_tokens} the context of {context_length} tokens leaves {max(longest_allowed, 0)}.",
            where=f"problem {worst}",
            next_step="Lower max_new_tokens or leave these problems out.",
        )
