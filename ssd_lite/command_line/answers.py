"""What a command says: text for people, or with --json one JSON object on stdout and the text on stderr."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from ssd_lite.errors import Stopped, UserError


@dataclass(frozen=True)
class Answer:
    """A command's result: the JSON object and the lines for people; `failure` is raised when both are out."""

    value: dict[str, Any]
    text: str = ""
    failure: click.ClickException | None = None


def answers_json(command: Callable[..., Answer | None]) -> Callable[..., None]:
    """Give a command --json. It gets `as_json` and returns an Answer; a failure is an object too, `{"error": …}`."""

    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, **options: Any) -> None:
        try:
            # What libraries print on the way must not spoil the one object on stdout.
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                answer = command(*args, as_json=as_json, **options)
        except click.ClickException as error:
            if as_json:
                click.echo(json.dumps(_failure(error), ensure_ascii=False))
            raise
        if answer is None:
            return
        if answer.text:
            click.echo(answer.text, err=as_json)
        if as_json:
            failed = {} if answer.failure is None else _failure(answer.failure)
            click.echo(json.dumps({**answer.value, **failed}, ensure_ascii=False))
        if answer.failure is not None:
            raise answer.failure

    option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, text on stderr.")
    return option(wrapper)


def _failure(error: click.ClickException) -> dict[str, Any]:
    body: dict[str, Any] = {"error": error.message, "exit_code": error.exit_code, "stopped": isinstance(error, Stopped)}
    if isinstance(error, UserError):
        body |= {"what": error.what, "where": error.where, "next_step": error.next_step}
    return body


def with_example(*lines: str) -> str:
    """The end of a command's help: an example, not wrapped."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExample:\n{body}"
