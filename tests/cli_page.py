"""docs/cli.md, made from the --help of every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from ssd_lite.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Command line

This page is the `--help` of every command. Every command takes `--json`: then stdout holds one JSON object and the text
for people goes to stderr; a failure is an object with `error` and `exit_code`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug, or a stage was killed: the traceback is on stderr and in `log.txt`; or `--strict`, or `--then` failed |
| 2 | something to mend; one line says what, where and what to do |
| 75 | stopped by SIGTERM, Ctrl-C or a limit, after the work in hand was saved: the same command goes on |
"""


def commands(command: click.Command = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, groups included."""
    yield words
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))


def help_of(words: tuple[str, ...]) -> str:
    """What `ssd-lite WORDS --help` prints in 80 columns."""
    result = CliRunner().invoke(main, [*words, "--help"], prog_name="ssd-lite", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


def page() -> str:
    """The whole page."""
    parts = [f"## {' '.join(('ssd-lite', *words))}\n\n```text\n{help_of(words)}```\n" for words in commands()]
    return "\n".join([HEAD, *parts])
