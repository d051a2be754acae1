"""The command plan: memory, time, disk and money before anything is rented or fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.finite import POSITIVE
from ssd_lite.command_line.paths import PATH
from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path


@click.command(
    epilog=with_example(
        "ssd-lite plan qwen3-8b-qlora-24gb --gpu rtx4090 --price 0.69", "ssd-lite plan runs/quickstart --json"
    )
)
@click.argument("recipe", metavar="RECIPE|FILE.yaml|DIR")
@click.option("--gpu", metavar="NAME", help="rtx4090, l4, a10, a100-40, a100-80, h100 …; default cpu, no card.")
@click.option("--price", type=POSITIVE, metavar="N", help="Money an hour.")
@click.option("--mean-tokens", type=click.IntRange(min=1), metavar="N", help="Mean completion, where you know it.")
@click.option("--ram", "ram_gb", type=POSITIVE, metavar="GB", help="Memory of the host.")
@click.option("--disk", "disk_gb", type=POSITIVE, metavar="GB", help="Free disk.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Override one key of the recipe; repeatable.")
@click.option("--write", type=PATH, metavar="FILE", help="Write the recipe that fits.")
@answers_json
def plan(recipe: str, settings: tuple[str, ...], write: Path | None, as_json: bool, **asked: Any) -> Answer:
    """Say what a recipe needs on a card, before you pay.

    Memory by term, host memory, disk, tokens, hours and money of each stage, by arithmetic: no weights, no card.
    Where it does not fit, the keys to change. For a run that has begun, what it measured replaces what was guessed.
    """
    from ssd_lite.recipe_file import load_recipe
    from ssd_lite.run_folder import RunFolder
    from ssd_lite.stages import plan as stage
    from ssd_lite.stages import plan_words as words
    from ssd_lite.stages.plan_run import plan_run

    question, measured = stage.Question(**asked), None
    run = user_path(recipe, "RECIPE")
    if (run / "recipe.yaml").is_file():
        if settings:
            raise UserError("does not go with a run, whose recipe is fixed.", where="--set")
        answered, measured = plan_run(RunFolder.open(run), question)
    else:
        answered = stage.plan(load_recipe(recipe, list(settings)), question)
    text = words.as_text(answered, measured)
    if write is not None:
        text += f"\n{_written(words.fitting_recipe(answered), write)}"
    return Answer(words.as_json(answered, measured), text)


def _written(text: str | None, file: Path) -> str:
    if text is None:
        return "Nothing was written."
    from ssd_lite.atomic import write_text

    if file.exists():
        raise UserError("is there already.", where=str(file), next_step="Name another file for --write.")
    try:
        write_text(file, text)
    except UserError as error:
        raise UserError(error.what, where=error.where, next_step="Name another file for --write.") from error
    return f"The recipe that fits: {file}"
