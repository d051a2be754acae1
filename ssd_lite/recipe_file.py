"""Recipes as files: read and checked, overridden with --set, looked up by name where packaged, compared."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_yaml import dump_yaml, parse_yaml
from ssd_lite.user_path import user_path

_SHORT = reprlib.Repr()  # a value that is wrong may be long, and aliases may stand for more than memory holds
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 200, 200


def recipe_folder() -> Path:
    """`recipes/` inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    return next(f for f in (package / "recipes", package.parent / "recipes") if f.is_dir())


def packaged_recipes() -> dict[str, str]:
    """Name → YAML text of the recipes that ship with the package."""
    texts = {}
    for entry in recipe_folder().iterdir():
        if entry.name.endswith(".yaml"):
            texts[entry.name.removesuffix(".yaml")] = entry.read_text(encoding="utf-8")
    return dict(sorted(texts.items()))


def load_recipe(name_or_file: str, settings: Sequence[str] = ()) -> Recipe:
    """A packaged name or a YAML file, with `a.b=c` overrides on top. Raises UserError that names the key and a mend."""
    packaged = packaged_recipes()
    if name_or_file in packaged:
        text, where = packaged[name_or_file], name_or_file
    else:
        path = user_path(name_or_file, "RECIPE")
        if not path.is_file():
            guess = _did_you_mean(name_or_file, packaged)
            raise UserError(
                f"no recipe named {name_or_file!r} and no file {path.absolute()}{guess}.",
                next_step="`ssd-lite recipes` lists the packaged ones.",
            )
        text, where = _read_text(path), str(path)
    value = parse_yaml(text, where)
    if not isinstance(value, dict):
        raise UserError("a recipe is a mapping of sections (model: …, sample: …).", where=where)
    value.setdefault("name", name_or_file if name_or_file in packaged else Path(name_or_file).stem)
    for setting in settings:
        override(value, setting)
    return validate(value, where)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"is not UTF-8 (byte {error.start}).", where=str(path), next_step="Save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=str(path.absolute())) from error


def override(value: dict[str, Any], setting: str) -> None:
    """Apply one `a.b=c` of `--set` to a recipe's mapping. Raises UserError for what is no setting."""
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"wants a.b=value, got {setting!r}.", where="--set")
    target = value
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise UserError(f"{key} is no section.", where=f"--set {path}")
    target[keys[-1]] = parse_yaml(text, f"--set {path}")


def validate(value: dict[str, Any], where: str) -> Recipe:
    """A checked Recipe; all mistakes are named at once."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
    raise UserError(lines[0] if len(lines) == 1 else "\n  " + "\n  ".join(lines), where=where)


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"{key}: unknown key{_did_you_mean(location[-1], known)}; known here: {', '.join(known)}."
    message = str(item["msg"]).removeprefix("Value error, ")
    silent = isinstance(item["input"], dict) or item["type"] in ("value_error", "missing")
    got = "" if silent else f" (got {_SHORT.repr(item['input'])})"
    advice = ""
    if item["type"] in ("int_type", "float_type") and isinstance(item["input"], str):
        advice = " Write a plain decimal number without quotes."
    return f"{key}: {message}{got}.{advice}" if key else f"{message}."


def _known_keys(location: Iterable[str]) -> list[str]:
    section: Any = Recipe
    for part in location:
        if part.isdigit():  # a place in a list, whose section was found with the list
            continue
        field = section.model_fields.get(part)
        options = [field.annotation, *get_args(field.annotation)] if field else []
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), Recipe)
    return list(section.model_fields)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def dump_recipe(recipe: Recipe) -> str:
    """The whole resolved recipe as YAML; `load_recipe` reads it back equal."""
    return dump_yaml(recipe.model_dump(mode="json"))


def differences(old: Recipe, new: Recipe, sections: Iterable[str] | None = None) -> list[str]:
    """`a.b: old → new` for each key that differs, limited to these top-level keys if given."""
    free = {"description", "rounds", "compare"}  # no file of a run depends on them
    chosen = set(sections) if sections is not None else set(Recipe.model_fields) - free
    left, right = _flat(old.model_dump(include=chosen)), _flat(new.model_dump(include=chosen))
    return [f"{key}: {left.get(key)!r} → {right.get(key)!r}" for key in left | right if left.get(key) != right.get(key)]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()
