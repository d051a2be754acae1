"""The command that compares: base, SSD and its controls, trained and judged alike."""

from __future__ import annotations

from pathlib import Path

import click

from ssd_lite.atomic import disk_errors
from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.paths import PATH
from ssd_lite.command_line.process import locked_folder
from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path


@click.command(
    epilog=with_example("ssd-lite compare quickstart", "ssd-lite compare quickstart --set compare.seeds=[0,1,2]")
)
@click.argument("recipe", metavar="RECIPE|FILE.yaml|DIR")
@click.option("--out", type=PATH, metavar="DIR", help="Default comparisons/NAME.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Override one key of the recipe; repeatable.")
@click.option("--arm", "arms", multiple=True, metavar="ARM", help="Only evaluate this arm of DIR, here; repeatable.")
@answers_json
def compare(recipe: str, out: Path | None, settings: tuple[str, ...], arms: tuple[str, ...], as_json: bool) -> Answer:
    """Ask whether training helped beyond what decoding gives.

    Trains SSD and its controls (section compare of a recipe), looks for the best decoding of the base and of SSD on a
    dev split, and reports every arm on the test split. Stopped or killed, the same command goes on where it was.
    """
    if arms:
        return _evaluate(user_path(recipe, "DIR"), arms)
    from ssd_lite.recipe_file import load_recipe
    from ssd_lite.stages.compare import compare as stage
    from ssd_lite.stages.compare import prepare
    from ssd_lite.stages.comparison.folder import ComparisonFolder
    from ssd_lite.stages.comparison.page import terminal_table

    there = user_path(recipe, "RECIPE")
    if (there / "compare.yaml").is_file():
        if out or settings:
            raise UserError("goes with a recipe, not with a comparison that stands.", where="--out" if out else "--set")
        folder = ComparisonFolder.open(there)
    else:
        chosen = load_recipe(recipe, settings)
        folder = prepare(out or Path("comparisons") / chosen.name, chosen)
    with disk_errors(folder.path):
        result = stage(folder, say=lambda line: click.echo(line, err=as_json), stdout=2 if as_json else None)
    return Answer({**result, "report": str(folder.report)}, f"{terminal_table(result)}\n\nReport: {folder.report}")


def _evaluate(path: Path, names: tuple[str, ...]) -> Answer:
    from ssd_lite.stages.comparison.arms import evaluate_arms
    from ssd_lite.stages.comparison.folder import ComparisonFolder
    from ssd_lite.stages.comparison.plan import read_order

    orders = [read_order(name) for name in names]
    folder = ComparisonFolder.open(path)
    with locked_folder(path):
        reports = evaluate_arms(folder, orders)
    lines = [
        f"evaluate {order.name}: pass@1 {100 * report['pass_at_k']['1']['mean']:.1f} %"
        for order, report in zip(orders, reports, strict=True)
    ]
    return Answer({"arms": dict(zip(names, reports, strict=True))}, "\n".join(lines))
