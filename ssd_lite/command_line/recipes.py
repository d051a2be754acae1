"""Commands on recipes: list them, show one, print the schema."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.paths import PATH


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


@recipes.command(epilog=with_example("ssd-lite recipes cloud", "ssd-lite recipes cloud --copy cloud"))
@click.argument("name", required=False)
@click.option("--copy", "folder", type=PATH, metavar="DIR", help="Write all, or NAME, here.")
@answers_json
def cloud(name: str | None, folder: Path | None, as_json: bool) -> Answer:
    """List the files for rented machines, print one, or copy them.

    SkyPilot, Hugging Face Jobs, Modal, RunPod, SSH and Docker; the head of each says how to start it.
    """
    from ssd_lite.stages.cloud_files import cloud_file, cloud_files, copy_cloud_files, what_it_is

    if folder is not None:
        written = [str(path) for path in copy_cloud_files([name] if name else list(cloud_files()), folder)]
        return Answer({"written": written}, "\n".join(written))
    if name is not None:
        text = cloud_file(name)
        return Answer({"name": name, "text": text}, text.rstrip("\n"))
    found = {file: what_it_is(text) for file, text in cloud_files().items()}
    width = max(map(len, found))
    lines = [f"{file:{width}}  {what}" for file, what in found.items()]
    return Answer({"files": [{"name": n, "description": d} for n, d in found.items()]}, "\n".join(lines))


@recipes.command(name="schema", epilog=with_example("ssd-lite recipes schema > recipe.schema.json"))
@answers_json
def schema_(as_json: bool) -> Answer:
    """Print the JSON schema of a recipe, for editors."""
    from ssd_lite.recipe_file import schema

    value = schema()
    return Answer(value, "" if as_json else json.dumps(value, indent=2))
