"""Commands on recipes: list them, show one, print the schema."""

from __future__ import annotations

import json

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example


@click.group(invoke_without_command=True, epilog=with_example("ssd-lite recipes", "ssd-lite recipes show quickstart"))
@click.pass_context
@answers_json
def recipes(context: click.Context, as_json: bool) -> Answer | None:
    """List the recipes that ship with the program."""
    if context.invoked_subcommand is not None:
        return None
    from ssd_lite.recipe_file import load_recipe, packaged_recipes

    found = {name: load_recipe(name).description for name in packaged_recipes()}
    width = max(map(len, found), default=0)
    lines = [f"{name:{width}}  {description}" for name, description in found.items()]
    return Answer({"recipes": [{"name": n, "description": d} for n, d in found.items()]}, "\n".join(lines))


@recipes.command(epilog=with_example("ssd-lite recipes show quickstart > mine.yaml"))
@click.argument("name")
@answers_json
def show(name: str, as_json: bool) -> Answer:
    """Print a recipe as it ships; with --json every key, defaults included."""
    from ssd_lite.recipe_file import load_recipe, packaged_recipes

    resolved = load_recipe(name)
    text = packaged_recipes().get(name)
    if text is None:
        from ssd_lite.recipe_file import dump_recipe

        text = dump_recipe(resolved)
    return Answer(resolved.model_dump(mode="json"), text.rstrip("\n"))


@recipes.command(name="schema", epilog=with_example("ssd-lite recipes schema > recipe.schema.json"))
@answers_json
def schema_(as_json: bool) -> Answer:
    """Print the JSON schema of a recipe, for editors."""
    from ssd_lite.recipe_file import schema

    value = schema()
    return Answer(value, "" if as_json else json.dumps(value, indent=2))
