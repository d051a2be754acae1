"""What the commands that sample any model share: their options, the default folder, recipe keys said as options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

ENGINES = click.Choice(["auto", "hf", "llama_cpp"])
OF_MODEL = ("revision", "gguf_type", "enable_thinking")
"""Options that are keys of a recipe's section model."""
_OPTIONS = (
    click.option("--revision", metavar="REV", help="Commit, tag or branch of a Hub id."),
    click.option("--top-k", type=int, metavar="K", help="Keep the K most likely tokens; 0 = off."),
    click.option("--top-p", type=float, metavar="P", help="Keep the smallest set of mass P; 1 = off."),
    click.option(
        "--min-p", type=float, metavar="P", help="Keep tokens at least P times as likely as the likeliest; 0 = off."
    ),
    click.option("--max-new-tokens", type=int, metavar="N", help="Token cap of a completion."),
    click.option("--seed", type=int, metavar="N", help="Common seed of all draws."),
    click.option("--engine", type=ENGINES, help="auto: hf on a CUDA card, llama_cpp without one."),
    click.option("--gguf-type", metavar="TYPE", help="Type of the GGUF that llama.cpp runs for a folder; default f16."),
    click.option("--threads", type=int, metavar="N", help="CPU threads; default: measured while it works."),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a model and its law but for the temperature, whose meaning each command says itself."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def thinking_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--enable-thinking and --disable-thinking; None leaves it to the template, or to a run's recipe."""
    return click.option(
        "--enable-thinking/--disable-thinking", default=None, help="Given to the chat template as enable_thinking."
    )(command)


def results_folder(parent: str, model: str, problems: str, *more: str) -> Path:
    """`parent`/MODEL-SET-..., where results go that no --out names."""
    # Not Path.stem, which would cut Llama-3.1-8B to Llama-3.
    names = (Path(model).name.removesuffix(".gguf"), Path(problems).name.removesuffix(".jsonl"), *more)
    return Path(parent) / "-".join(names).replace(":", "-")


def in_options(text: str, known: Mapping[str, str], sections: str) -> str:
    """Recipe keys in a message as the options that set them; `sections` is a pattern of those whose keys are so."""
    for key, option in known.items():
        text = text.replace(f"{key}:", f"{option}:")
    return re.sub(rf"\b(?:{sections})\.(\w+)", lambda key: "--" + key[1].replace("_", "-"), text)
