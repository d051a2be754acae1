"""The command that diagnoses, a run or any model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, thinking_option, with_example
from ssd_lite.command_line.process import locked_folder, opened_run
from ssd_lite.errors import UserError

if TYPE_CHECKING:
    from ssd_lite.recipe import Recipe

_LAW = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "seed", "engine")
_OF_MODEL = ("revision", "gguf_type", "enable_thinking")
_OF_BOTH = {"limit"}


@click.command(
    epilog=with_example(
        "ssd-lite diagnose smollm2-135m-instruct --limit 12 --temperature 1.1 --max-new-tokens 96",
        "ssd-lite diagnose runs/quickstart",
    )
)
@click.argument("target", metavar="MODEL|DIR")
@click.option("--revision", metavar="REV", help="Commit, tag or branch of a Hub id.")
@click.option("--problems", metavar="SET", help="Problem set whose prompts are sampled; default starter.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Read at most N samples; default 64.")
@click.option("--temperature", type=float, metavar="T", help="T_train; default 1.6.")
@click.option("--top-k", type=int, metavar="K", help="Keep the K most likely tokens; 0 = off.")
@click.option("--top-p", type=float, metavar="P", help="Keep the smallest set of mass P; 1 = off.")
@click.option(
    "--min-p", type=float, metavar="P", help="Keep tokens at least P times as likely as the likeliest; 0 = off."
)
@click.option("--max-new-tokens", type=int, metavar="N", help="Token cap of a completion.")
@click.option("--seed", type=int, metavar="N", help="Common seed of all draws.")
@click.option(
    "--engine", type=click.Choice(["auto", "hf", "llama_cpp"]), help="auto: hf on a CUDA card, llama_cpp without one."
)
@click.option("--gguf-type", metavar="TYPE", help="Type of the GGUF that llama.cpp runs for a folder; default f16.")
@click.option("--threads", type=int, metavar="N", help="CPU threads; default: measured while it works.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where results go; default diagnoses/MODEL-SET-T."
)
@thinking_option
@answers_json
def diagnose(target: str, as_json: bool, **options: Any) -> Answer:
    """Say what a model does at each position of its own samples.

    Before training: what the truncation removes, and which temperatures to try. Of a run whose merge is done: also what
    training changed, on the same tokens. Options that are left out take the defaults of a recipe's section sample.
    """
    from ssd_lite.stages.diagnosis_section import terminal_text

    given = {name: value for name, value in options.items() if value is not None}
    folder = Path(target)
    if not (folder / "recipe.yaml").is_file():
        return _model(target, given)
    wrong = next((name for name in given if name not in _OF_BOTH), None)
    if wrong:
        raise UserError(
            "goes with a model; a run is diagnosed on its own samples, as its recipe.yaml says.",
            where="--" + wrong.replace("_", "-"),
            next_step=f"Leave it out, or name a model instead of {folder}.",
        )
    from ssd_lite.stages.diagnose import diagnose_run

    with opened_run(folder) as run:
        report = diagnose_run(run, given.get("limit"))
    return Answer({**report, "out": str(folder)}, f"{terminal_text(report)}\n\nin {folder / 'diagnosis.html'}")


def _model(name: str, given: dict[str, Any]) -> Answer:
    from ssd_lite.stages.diagnose import diagnose_model
    from ssd_lite.stages.diagnosis_section import terminal_text

    recipe = _as_recipe(name, given)
    # Not Path.stem, which would cut Llama-3.1-8B to Llama-3.
    names = (Path(name).name.removesuffix(".gguf"), Path(recipe.problems.train).name.removesuffix(".jsonl"))
    out = given.get("out") or Path("diagnoses") / f"{'-'.join(names)}-{recipe.sample.temperature:g}".replace(":", "-")
    with locked_folder(out):
        report = diagnose_model(recipe, out, given.get("limit"))
    return Answer({**report, "out": str(out)}, f"{terminal_text(report)}\n\nin {out / 'diagnosis.html'}")


def _as_recipe(name: str, given: dict[str, Any]) -> Recipe:
    """The options as a recipe, so that one place checks them and one place holds their defaults."""
    from ssd_lite.recipe_file import validate

    value: dict[str, Any] = {
        "name": "diagnose",
        "threads": given.get("threads"),
        "model": {
            "name": name,
            **{key: given[key] for key in _OF_MODEL if key in given},
        },
        "problems": {"train": given["problems"]} if "problems" in given else {},
        # T = 1 without truncation may be diagnosed, though nothing should be trained with it.
        "sample": {"null_arm": True, **{key: given[key] for key in _LAW if key in given}},
    }
    try:
        return validate(value, "diagnose")
    except UserError as error:
        raise UserError(_in_options(error.what), where=error.where) from error


def _in_options(text: str) -> str:
    """Recipe keys in a message as the options that set them."""
    text = text.replace("problems.train:", "--problems:").replace("model.name:", "MODEL:")
    return re.sub(r"\b(?:sample|model)\.(\w+)", lambda key: "--" + key[1].replace("_", "-"), text)
