"""Docs cannot drift: the recipe's keys come from recipe.py, links resolve, and quoted commands exist.

To rewrite docs/recipe.md after a change of recipe.py: `python tests/test_docs.py`.
"""

from __future__ import annotations

import json
import re
import shlex
import typing
from pathlib import Path
from typing import Any

import annotated_types
import click
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ssd_lite.cli import main
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_section import Decoding, Section

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPE_PAGE = ROOT / "docs" / "recipe.md"
HEAD = """# Every key of a recipe

<!-- Made from ssd_lite/recipe.py by `python tests/test_docs.py`; change the docstrings there. -->

A recipe is YAML with the sections below, in the order of the stages. Write only what differs from a default. The
order of precedence is default, recipe, `--set a.b=c`. Unknown keys and keys that stand twice are refused; `1e-5` is a
number, `no`, `010`, `1_000` and dates are text. `ssd-lite recipes show NAME` prints a recipe that ships, `ssd-lite
recipes schema` the JSON schema for editors. The run folder's `recipe.yaml` holds the resolved recipe with every key.
`name` may be left out: it is then the file's name.

A run is held to its recipe as far as it has come: what a stage stands on that has begun cannot change, keys of later
stages may. At any time may change how the work is cut and watched: `batch_size`, `train.save_steps`, `train.report_to`,
`train.gradient_checkpointing`, `threads`, and `train.per_device_train_batch_size` with
`train.gradient_accumulation_steps` as long as their product stays (not under GRPO).

    model: {name: Qwen/Qwen3-4B-Instruct-2507}
    sample: {temperature: 1.6}
    train: {method: qlora, learning_rate: 1e-4}
"""


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inner_sections() -> dict[str, type[Section]]:
    """Sections inside sections: `train.grpo`, an item of `evaluate.guard`, `compare.grid`."""
    found: dict[str, type[Section]] = {}
    for name, section in Recipe.model_fields.items():
        if _is_section(section.annotation):
            for key, field in section.annotation.model_fields.items():
                inner = [a for a in (field.annotation, *typing.get_args(field.annotation)) if _is_section(a)]
                found |= {f"{name}.{key}": a for a in inner if a is not Decoding}
    return found


def _type_text(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(map(str, typing.get_args(annotation)))
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is typing.Annotated:
        return _type_text(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is list:
        return f"list of {_type_text(typing.get_args(annotation)[0])}"
    if typing.get_args(annotation):
        return " or ".join(map(_type_text, typing.get_args(annotation)))
    if _is_section(annotation):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}[annotation.__name__]


def _bounds_text(field: FieldInfo) -> str:
    found = []
    for item in field.metadata:
        match item:
            case annotated_types.Gt(gt=bound):
                found.append(f"above {bound}")
            case annotated_types.Ge(ge=bound):
                found.append(f"at least {bound}")
            case annotated_types.Lt(lt=bound):
                found.append(f"below {'2^63' if bound == 2**63 else bound}")
            case annotated_types.Le(le=bound):
                found.append(f"at most {bound}")
    return f", {', '.join(found)}" if found else ""


def _default_text(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    if isinstance(field.default, Section) and not isinstance(field.default, Decoding):
        return "see below"
    if isinstance(field.default, Decoding):
        inner = ", ".join(f"{key}: {value}" for key, value in field.default.model_dump().items())
        return f"`{{{inner}}}`"
    return f"`{field.default if isinstance(field.default, str) and field.default else json.dumps(field.default)}`"


def _row(name: str, field: FieldInfo) -> str:
    kind = "decoding" if field.annotation is Decoding else _type_text(field.annotation) + _bounds_text(field)
    meaning = " ".join((field.description or "").split())
    return f"| `{name}` | {_default_text(field)} | {kind} | {meaning} |".replace("| |", "|  |")


def _table(model: type[Section], *, leave_out_sections: bool = False) -> str:
    fields = {
        name: field
        for name, field in model.model_fields.items()
        if not (leave_out_sections and _is_section(field.annotation))
    }
    return "\n".join(
        ["| key | default | values | meaning |", "|---|---|---|---|", *(_row(n, f) for n, f in fields.items())]
    )


def recipe_page() -> str:
    """docs/recipe.md as recipe.py makes it."""
    parts = [HEAD, "## Top level\n" + _table(Recipe, leave_out_sections=True)]
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            said = " ".join((field.annotation.__doc__ or "").split())
            parts.append(f"## {name}\n{said}\n\n{_table(field.annotation)}")
    for name, inner in _inner_sections().items():
        parts.append(f"## {name}\n{' '.join((inner.__doc__ or '').split())}\n\n{_table(inner)}")
    decoding = " ".join((Decoding.__doc__ or "").split())
    parts.append(f"## A decoding\nThe value of `evaluate.base` and `evaluate.tuned`. {decoding}\n\n{_table(Decoding)}")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def test_the_recipe_page_is_what_recipe_py_says() -> None:
    assert RECIPE_PAGE.read_text(encoding="utf-8") == recipe_page(), "run: python tests/test_docs.py"


def test_every_key_has_a_meaning() -> None:
    without = [
        f"{section.__name__}.{name}"
        for section in [*(f.annotation for f in Recipe.model_fields.values()), *_inner_sections().values(), Decoding]
        if isinstance(section, type) and issubclass(section, Section)
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert without == []


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def quoted_commands(text: str) -> list[str]:
    """Each `ssd-lite …` in backticks or in an indented or fenced line; a line that ends with a backslash goes on."""
    text = re.sub(r" *\\\n\s*", " ", text)
    found = re.findall(r"`(ssd-lite(?: [^`\n]*)?)`", text)
    in_fence = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            in_fence = not in_fence
        elif in_fence or line.startswith("    "):
            for part in line.split("&&"):
                match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(ssd-lite(?: .*)?)$", part)
                if match:
                    found.append(re.sub(r"\s+#.*$| {2,}.*$", "", match[1]).strip())
    return found


def mistakes(command: str) -> list[str]:
    """What is wrong with a quoted command: a subcommand or an option that is not there."""
    words = shlex.split(command)[1:]
    here: click.Command = main
    wrong = []
    for word in words:
        if word.startswith("--"):
            known = {option for parameter in here.params for option in parameter.opts} | {"--help"}
            if word.split("=")[0] not in known:
                wrong.append(f"{command}: {here.name} has no option {word}")
        elif isinstance(here, click.Group):
            names = word.split("|")
            wrong += [f"{command}: no command {name}" for name in names if name not in here.commands]
            here = here.commands.get(names[0], here)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_quoted_command_exists(page: Path) -> None:
    commands = quoted_commands(page.read_text(encoding="utf-8"))
    assert [mistake for command in commands for mistake in mistakes(command)] == []


def test_quoted_commands_are_found_and_checked() -> None:
    text = "Type `ssd-lite run quickstart`.\n\n    ssd-lite evaluate --model M \\\n        --bogus 1\n"
    text += "    .venv/bin/ssd-lite x  # why\n"
    assert quoted_commands(text) == [
        "ssd-lite run quickstart",
        "ssd-lite evaluate --model M --bogus 1",
        "ssd-lite x",
    ]
    assert mistakes("ssd-lite run quickstart --set a.b=c") == []
    assert mistakes("ssd-lite evaluate --model M --bogus 1") == [
        "ssd-lite evaluate --model M --bogus 1: evaluate has no option --bogus"
    ]
    assert mistakes("ssd-lite x") == ["ssd-lite x: no command x"]
    assert mistakes("ssd-lite recipes show quickstart") == []


def test_every_command_has_an_example_and_every_option_a_help() -> None:
    def walk(command: click.Command) -> list[click.Command]:
        children = command.commands.values() if isinstance(command, click.Group) else []
        return [command, *(found for child in children for found in walk(child))]

    for command in walk(main):
        assert "Example:" in (command.epilog or ""), command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (command.name, parameter.name)


if __name__ == "__main__":
    RECIPE_PAGE.write_text(recipe_page(), encoding="utf-8")
