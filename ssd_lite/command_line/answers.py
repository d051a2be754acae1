"""What a command says: text for people, or with --json one JSON object on stdout and the text on stderr."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from ssd_lite.errors import Stopped, UserError

_SAID = "ssd_lite.said"  # in click's meta: the object of a failure is out


@dataclass(frozen=True)
class Answer:
    """A command's result: the JSON object and the lines for people; `failure` is raised when both are out."""

    value: dict[str, Any]
    text: str = ""
    failure: click.ClickException | None = None


def answers_json(command: Callable[..., Answer | None]) -> Callable[..., None]:
    """Give a command --json. It gets `as_json` and returns an Answer; a failure is an object too, `{"error": …}`.

    What fails before a command begins, an unknown option for instance, is `failures_as_json`'s.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, **options: Any) -> None:
        try:
            # What libraries print on the way must not spoil the one object on stdout.
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                answer = command(*args, as_json=as_json, **options)
        except Exception as error:
            if as_json:
                _say_failure(error, click.get_current_context())
            raise
        if answer is None:
            return
        if answer.text:
            click.echo(_fitting(answer.text), err=as_json)
        if as_json:
            click.get_current_context().meta[_SAID] = True
            failed = {} if answer.failure is None else _failure(answer.failure)
            _say({**answer.value, **failed})
        if answer.failure is not None:
            raise answer.failure

    option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, text on stderr.")
    return option(wrapper)


@contextmanager
def failures_as_json(context: click.Context, words: Sequence[str]) -> Iterator[None]:
    """Say as an object what fails, where --json is among the words of the command line and no command has said it."""
    try:
        yield
    except click.ClickException as error:
        if "--json" in words and not context.meta.get(_SAID):
            _say_failure(error, context)
        raise


def _say_failure(error: Exception, context: click.Context) -> None:
    if not isinstance(error, (click.exceptions.Exit, click.Abort)):  # how click ends a command, no failures
        context.meta[_SAID] = True
        _say(_failure(error))


def _say(value: dict[str, Any]) -> None:
    """Print one object, with JSON's escapes where stdout cannot take its letters."""
    text = json.dumps(value, ensure_ascii=False)
    click.echo(text if _fitting(text) == text else json.dumps(value))


def _fitting(text: str) -> str:
    """The text as stdout can take it: an ASCII terminal has no arrows, and bytes of a path may be no letters."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _failure(error: Exception) -> dict[str, Any]:
    if not isinstance(error, click.ClickException):
        return {"error": f"{type(error).__name__}: {error}", "exit_code": 1, "stopped": False}
    message = error.format_message()
    body: dict[str, Any] = {"error": message, "exit_code": error.exit_code, "stopped": isinstance(error, Stopped)}
    if isinstance(error, UserError):
        body |= {"what": error.what, "where": error.where, "next_step": error.next_step}
    return body


def with_example(*lines: str) -> str:
    """The end of a command's help: an example, not wrapped."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExample:\n{body}"
