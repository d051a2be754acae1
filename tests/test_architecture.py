"""The rules of the house: who may import whom, where heavy libraries stand, sizes, names, first lines."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ssd_lite"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch", "transformers", "peft", "bitsandbytes", "unsloth", "llama_cpp", "gguf", "accelerate", "tokenizers",
    "safetensors", "trl", "datasets",
}  # fmt: skip
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES if path.name != "__init__.py"}
MIDDLE = {"problems", "grading", "engines", "plan"}
FOUNDATION = {
    "atomic", "container", "errors", "heartbeat", "interrupt", "journal", "problem_tests", "progress", "prompts",
    "recipe", "recipe_export", "recipe_file", "recipe_measuring", "recipe_section", "recipe_server",
    "recipe_stages", "recipe_yaml", "records", "run_folder", "run_lock", "span_file", "user_path",
}  # fmt: skip
COMMANDS = {"cli", "command_line", "__main__"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 250, 40
# Named exceptions, each with its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "ssd_lite/engines/gguf/tokenizer.py:_tokenizer_json": "one literal, the file it writes",
    "ssd_lite/engines/training/loss.py:forward": "one pass over blocks of the vocabulary, one function for autograd",
    "ssd_lite/engines/training/trainer.py:train_model": "the order of a training run, step after step",
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager"}


def room(path: Path) -> str:
    """The folder below the package, or the file's own name."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it is useful, and without decorators."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, in functions and for types too; `from ssd_lite import x` counts as ssd_lite.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"ssd_lite.{alias.name}" for alias in node.names) if module == "ssd_lite" else (module,)


def own_rooms(path: Path) -> set[str]:
    """The rooms of ssd_lite that a file imports."""
    found = (module for module in imports(path) if module.startswith("ssd_lite."))
    return {module.split(".")[1] for module in found} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_right(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        allowed: set[str] = set()
    elif here in COMMANDS:
        allowed = COMMANDS | {"stages"} | MIDDLE | FOUNDATION
    elif here == "stages":
        allowed = {"stages"} | MIDDLE | FOUNDATION
    elif here in MIDDLE:
        allowed = {here} | FOUNDATION
    else:
        assert here in FOUNDATION, f"{here}: a new room; say in this test where it stands"
        allowed = FOUNDATION
    assert own_rooms(path) <= allowed


def assert_no_circle(needs: dict[str, set[str]]) -> None:
    """Take away what needs nothing that is still there, until all is gone."""
    left = {name: others - {name} for name, others in needs.items()}
    while left:
        free = [name for name, others in left.items() if not others & set(left)]
        assert free, f"these import each other: { {name: sorted(left[name] & set(left)) for name in sorted(left)} }"
        for name in free:
            del left[name]


def modules(path: Path) -> set[str]:
    """The files of ssd_lite that a file imports, as dotted names; `from room import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssd_lite"):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(MODULES)


def test_foundation_does_not_go_round_in_circles() -> None:
    assert_no_circle({room(path): own_rooms(path) for path in FILES if room(path) in FOUNDATION})


def test_no_two_files_need_each_other() -> None:
    """Imports inside functions and for types count too."""
    assert_no_circle({name: modules(path) for name, path in MODULES.items()})


@pytest.mark.parametrize("place", ["engines", "stages"])
def test_rooms_of_a_folder_do_not_go_round_in_circles(place: str) -> None:
    """A folder inside is one room, a file beside it another."""

    def inner(name: str) -> str:
        return name.split(".")[2]

    needs: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name.startswith(f"ssd_lite.{place}."):
            others = {inner(other) for other in modules(path) if other.startswith(f"ssd_lite.{place}.")}
            needs.setdefault(inner(name), set()).update(others)
    assert_no_circle(needs)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "engines"], ids=name_of)
def test_heavy_libraries_only_inside_engines(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(path)}
    assert not found & HEAVY


def heavy_modules_after(code: str) -> set[str]:
    """Which heavy libraries, numpy included, a fresh interpreter has loaded after `code`."""
    report = "import sys; print('\\nLOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return set(loaded.split()) & (HEAVY | {"numpy", "pydantic", "yaml", "jinja2"})


def test_importing_the_command_line_loads_click_alone() -> None:
    assert heavy_modules_after("import ssd_lite.cli") == set()


def test_help_of_every_command_loads_click_alone() -> None:
    code = """
import click, ssd_lite.cli
from click.testing import CliRunner
def walk(command, words):
    result = CliRunner().invoke(ssd_lite.cli.main, [*words, "--help"])
    assert result.exit_code == 0 and "Example:" in result.output, (words, result.output)
    for name, inner in getattr(command, "commands", {}).items():
        walk(inner, [*words, name])
walk(ssd_lite.cli.main, [])
"""
    assert heavy_modules_after(code) == set()


def test_recipes_and_status_need_no_heavy_library(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from click.testing import CliRunner
from ssd_lite.cli import main
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
RunFolder.create(Path({str(tmp_path / "r")!r}), load_recipe("quickstart"))
for words in (["recipes"], ["recipes", "show", "quickstart"], ["status", {str(tmp_path / "r")!r}]):
    assert CliRunner().invoke(main, words).exit_code == 0, words
"""
    assert heavy_modules_after(code) <= {"pydantic", "yaml"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_size_and_first_line(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    first = ast.get_docstring(tree)
    assert first, "the first line says the file's duty"
    assert text.startswith('"""'), "the docstring is the first line"
    assert len(text.splitlines()) <= MAX_FILE_LINES or name_of(path) in LONG_FILES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = length(node)
            where = f"{name_of(path)}:{node.name}"
            assert lines <= MAX_FUNCTION_LINES or where in LONG_FUNCTIONS, f"{where} has {lines} lines"


def test_exceptions_are_still_needed() -> None:
    for name in LONG_FILES:
        assert len((ROOT / name).read_text().splitlines()) > MAX_FILE_LINES, f"{name} is short now"
    for where in LONG_FUNCTIONS:
        file, _, function = where.partition(":")
        nodes = [
            n
            for n in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(n, ast.FunctionDef) and n.name == function
        ]
        assert any(length(node) > MAX_FUNCTION_LINES for node in nodes), f"{where} is short now"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_say_something(path: Path) -> None:
    words = {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts}
    assert not words & FORBIDDEN_NAMES
    assert not {word for part in words for word in part.split("_")} & {"utils", "util", "helpers", "helper", "manager"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_path_of_one_machine(path: Path) -> None:
    assert not re.findall(r"[\"'](/(?:home|root|work|Users|mnt|opt|workspace)\b[^\"']*)", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_for_later(path: Path) -> None:
    assert not re.findall(r"\b(TODO|FIXME|XXX|HACK)\b|pragma: no cover|raise NotImplementedError", path.read_text())


def test_every_module_is_shipped() -> None:
    """A wheel holds the packages that pyproject.toml lists, and nothing else."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert there <= listed


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_what_tests_import_in_their_words_is_there(path: Path) -> None:
    """Code for other processes stands in strings, which neither an import nor a type checker sees."""
    for module, names in re.findall(r"from (ssd_lite[\w.]*) import ([\w, ]+)", path.read_text()):
        place = ROOT / module.replace(".", "/")
        if place.is_dir() and module != "ssd_lite":
            for name in (part.split()[0] for part in names.split(",") if part.strip()):
                assert (place / f"{name}.py").is_file() or (place / name).is_dir(), f"{module}.{name}"
        else:
            assert place.is_dir() or place.with_suffix(".py").is_file(), module
