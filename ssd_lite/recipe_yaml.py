"""YAML 1.1 minus its surprises: what recipes are read and written with. No value is guessed, no key is lost."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ssd_lite.errors import UserError

_NULL, _BOOL = re.compile(r"^(~|null|Null|NULL|)$"), re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
# Plain decimals. YAML 1.1 also takes 010 for 8, 1:30 for 90, 1_0.5 for 10.5 and 1e-5 for text.
_INT = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """A key twice is an error, numbers are plain decimals, and `yes`, `no`, `on`, `off`, dates and `=` are text.

    It knows no other tags than those of JSON's types: PyYAML's own of the others break on text that does not fit them.
    """

    yaml_implicit_resolvers = {}
    yaml_constructors = {}


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "is no mapping", node.start_mark)
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text (line {line})")
        if key in seen:
            problem = f"key {key!r} stands twice (line {seen[key]} and {line})"
            raise yaml.constructor.ConstructorError(None, None, problem)
        seen[key] = line
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


def _sequence(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "is no list", node.start_mark)
    return [loader.construct_object(item, deep=True) for item in node.value]


def _text(loader: _Loader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "is no text", node.start_mark)
    return str(loader.construct_scalar(node))


def _null(loader: _Loader, node: yaml.Node) -> None:
    _fitting(loader, node, _NULL, "null")


def _truth(loader: _Loader, node: yaml.Node) -> bool:
    return _fitting(loader, node, _BOOL, "true or false").lower() == "true"


def _whole_number(loader: _Loader, node: yaml.Node) -> int:
    text = _fitting(loader, node, _INT, "a whole number")
    if len(text) > 30:  # Python refuses to read thousands of digits
        raise yaml.constructor.ConstructorError(None, None, "a number has too many digits", node.start_mark)
    return int(text)


def _number(loader: _Loader, node: yaml.Node) -> float:
    text = _fitting(loader, node, _FLOAT, "a number")
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _fitting(loader: _Loader, node: yaml.Node, pattern: re.Pattern[str], kind: str) -> str:
    """The node's text. Where a tag such as !!int stands, nothing has looked at it yet."""
    text = _text(loader, node)
    if pattern.match(text) is None:
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not {kind}", node.start_mark)
    return text


def _undefined(loader: _Loader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is not known here", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or the loader above would read as a number: a short commit 1234e56."""


_PREFIX, _DIGITS = "tag:yaml.org,2002:", list("-+0123456789")
_Loader.add_implicit_resolver(f"{_PREFIX}null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_PREFIX}bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver(f"{_PREFIX}int", _INT, _DIGITS)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, [*_DIGITS, "."])
_CONSTRUCTORS = {
    "map": _mapping, "seq": _sequence, "str": _text, "null": _null, "bool": _truth, "int": _whole_number,
    "float": _number,
}  # fmt: skip
for _name, _constructor in _CONSTRUCTORS.items():
    _Loader.add_constructor(f"{_PREFIX}{_name}", _constructor)
_Loader.add_constructor(None, _undefined)


def parse_yaml(text: str, where: str) -> Any:
    """The value of one document. Raises UserError, with the line where it is known, for what is no such YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        raise UserError(f"is not YAML: {getattr(error, 'problem', None) or error}.", where=place) from error
    except RecursionError:
        raise UserError("is nested too deeply for a recipe.", where=where) from None


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads back equal; keys keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
