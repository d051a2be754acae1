"""Problem → messages → token ids: the one place that renders, for sampling, training and evaluation alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

from ssd_lite.errors import UserError
from ssd_lite.records import Message, Problem, Prompt

DATE = datetime(2024, 7, 26)
"""What a template that prints today's date prints in a run (Llama 3's print this one where they have no clock).

With the day's own date a run that was stopped could not go on tomorrow, and arms of two days had two prompts.
"""


class Renderer(Protocol):
    """A tokenizer with a chat template."""

    bos_id: int | None

    def render(self, messages: Sequence[Message], **variables: Any) -> tuple[str, list[int]]:
        """The text of a conversation up to the assistant's turn, and its ids; `variables` go to the template."""
        ...


def render(problems: Iterable[Problem], tokenizer: Renderer) -> list[Prompt]:
    """The prompts of problems. Raises UserError where a template gives the start token twice (text and tokenizer)."""
    prompts = []
    for problem in problems:
        text, ids = tokenizer.render(problem.messages, strftime_now=DATE.strftime)
        if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
            raise UserError("the prompt starts with two start tokens.", where=f"problem {problem.id}")
        prompts.append(Prompt(problem.id, text, tuple(ids)))
    return prompts
