"""The command doctor: is this machine fit for a run, and which command mends what is not?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.finite import FiniteRange
from ssd_lite.command_line.paths import PATH
from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path

if TYPE_CHECKING:
    from ssd_lite.recipe import Recipe


@click.command(epilog=with_example("ssd-lite doctor", "ssd-lite doctor qwen3-4b-instruct-qlora-24gb --json"))
@click.argument("recipe", metavar="[RECIPE|FILE.yaml|DIR]", required=False)
@click.option("--engine", type=click.Choice(["unsloth"]), help="Prove this engine against PEFT on this card; minutes.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Override one key of the recipe; repeatable.")
@click.option("--runs", type=PATH, default="runs", show_default=True, metavar="DIR", help="Where runs go.")
@click.option("--limit", type=FiniteRange(min=1), default=60, show_default=True, metavar="S", help="Longest self-test.")
@answers_json
def doctor(
    recipe: str | None, engine: str | None, settings: tuple[str, ...], runs: Path, limit: float, as_json: bool
) -> Answer:
    """Look this machine over, a line for each finding.

    ok; warn: works, but worse or slower; absent: optional and not installed; fail: stops a run, exit code 2. What is
    not ok ends with the command that mends it. With a recipe: what this one needs, and whether it fits here.
    """
    from ssd_lite.stages import doctor as stage
    from ssd_lite.stages.checkup.finding import as_text

    if settings and recipe is None:
        raise UserError("needs a recipe.", where="--set", next_step="Name one: ssd-lite doctor RECIPE --set …")
    held = None if recipe is None else _recipe(recipe, settings)
    question = stage.Question(held, recipe or "", engine == "unsloth", runs, limit)
    findings = stage.examine(question, lambda line: click.echo(line, err=True))
    fails = [finding for finding in findings if finding.status == "fail"]
    failure = None
    if fails:
        names = ", ".join(finding.name for finding in fails)
        failure = UserError(f"this stops a run: {names}.", where="doctor", next_step="Type the commands above.")
    value = {"fit": not fails, "findings": [finding.facts for finding in findings]}
    return Answer(value, as_text(findings), failure)


def _recipe(name: str, settings: tuple[str, ...]) -> Recipe:
    from ssd_lite.recipe_file import load_recipe
    from ssd_lite.run_folder import RunFolder

    run = user_path(name, "RECIPE")
    if not (run / "recipe.yaml").is_file():
        return load_recipe(name, list(settings))
    if settings:
        raise UserError("does not go with a run, whose recipe is fixed.", where="--set")
    return RunFolder.open(run).recipe
