"""The command that diagnoses, a run or any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.model_options import OF_MODEL, in_options, model_options, results_folder, thinking_option
from ssd_lite.command_line.paths import PATH
from ssd_lite.command_line.process import locked_folder, opened_run
from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path

if TYPE_CHECKING:
    from ssd_lite.recipe import Recipe

_LAW = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "seed", "engine")
_OF_BOTH = {"limit"}


@click.command(
    epilog=with_example(
        "ssd-lite diagnose smollm2-135m-instruct --limit 12 --temperature 1.1 --max-new-tokens 96",
        "ssd-lite diagnose runs/quickstart",
    )
)
@click.argument("target", metavar="MODEL|DIR")
@click.option("--problems", metavar="SET", help="Problem set whose prompts are sampled; default starter.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Read at most N samples; default 64.")
@click.option("--temperature", type=float, metavar="T", help="T_train; default 1.6.")
@model_options
@click.option("--out", type=PATH, metavar="DIR", help="Where results go; default diagnoses/MODEL-SET-T.")
@thinking_option
@answers_json
def diagnose(target: str, as_json: bool, **options: Any) -> Answer:
    """Say what a model does at each position of its own samples.

    Before training: what the truncation removes, and which temperatures to try. Of a run whose merge is done: also what
    training changed, on the same tokens. Options that are left out take the defaults of a recipe's section sample.
    """
    from ssd_lite.stages.pages.diagnosis_section import terminal_text

    given = {name: value for name, value in options.items() if value is not None}
    folder = user_path(target, "MODEL")
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

    with opened_run(folder, "diagnose") as run:
        report = diagnose_run(run, given.get("limit"))
    return Answer({**report, "out": str(folder)}, f"{terminal_text(report)}\n\nin {folder / 'diagnosis.html'}")


def _model(name: str, given: dict[str, Any]) -> Answer:
    from ssd_lite.stages.diagnose import diagnose_model
    from ssd_lite.stages.pages.diagnosis_section import terminal_text

    recipe = _as_recipe(name, given)
    default = results_folder("diagnoses", name, recipe.problems.train, f"{recipe.sample.temperature:g}")
    out = given.get("out") or default
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
            **{key: given[key] for key in OF_MODEL if key in given},
        },
        "problems": {"train": given["problems"]} if "problems" in given else {},
        # T = 1 without truncation may be diagnosed, though nothing should be trained with it.
        "sample": {"null_arm": True, **{key: given[key] for key in _LAW if key in given}},
    }
    try:
        return validate(value, "diagnose")
    except UserError as error:
        known = {"problems.train": "--problems", "model.name": "MODEL"}
        raise UserError(in_options(error.what, known, "sample|model"), where=error.where) from error
