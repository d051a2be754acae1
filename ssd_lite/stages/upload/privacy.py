"""What is published names no place of this machine: local paths become their last part, in every text that is sent."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from pathlib import Path

from ssd_lite.run_folder import RunFolder

# A path goes on until white space, a quote, or what closes it in YAML, JSON, HTML and Markdown.
_INSIDE = r"[^\s\"'`<>|(){}\[\],;:&\\]*"
_START = r"(?<![\w.:/~-])"
_SOURCES = ("mbpp", "humaneval", "rstar-coder", "livecodebench", "evalplus", "questions")


class Privacy:
    """Cleans texts of one run. A Hub id and a path inside the run are no places of a machine and stay."""

    def __init__(self, run: RunFolder) -> None:
        patterns = [*_of_names(_local_names(run)), *_of_places(run)]
        self._path = re.compile("|".join(patterns))

    def clean(self, text: str) -> str:
        """`text` with each local path cut to its last part."""
        return self._path.sub(lambda found: found[0].rstrip("/").rsplit("/", 1)[-1], text)


def _of_names(names: Iterator[str]) -> Iterator[str]:
    """The names themselves, and any absolute path that ends like one: it may have been written on another machine."""
    for name in sorted(set(names), key=len, reverse=True):
        last = name.rstrip("/").rsplit("/", 1)[-1]
        if "/" in name.rstrip("/"):
            yield re.escape(name)
        if last not in ("", ".", ".."):
            yield rf"{_START}~?/(?:{_INSIDE}/)?{re.escape(last)}(?![\w-])"


def _of_places(run: RunFolder) -> Iterator[str]:
    """Everything below this user's home, the current folder and the run's, and what has the user's name in its path."""
    places = {str(place) for path in (Path.home(), Path.cwd(), run.path.absolute()) for place in (path, path.resolve())}
    for place in sorted(places - {"/"}, key=len, reverse=True):
        yield rf"{_START}{re.escape(place)}(?![\w-]){_INSIDE}"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return
    if user != "root":  # nobody's name
        yield rf"{_START}/(?:{_INSIDE}/)?{re.escape(user)}(?![\w-]){_INSIDE}"


def _local_names(run: RunFolder) -> Iterator[str]:
    """Texts of the recipe that name a file or folder of this machine."""
    recipe, manifest = run.recipe, run.manifest()
    for role, name in (("model", recipe.model.name), ("teacher", recipe.sample.teacher)):
        if name and _is_local(name, manifest.get(role, {}).get("kind")):
            yield name
    sets = [recipe.problems.train, recipe.problems.evaluate, *(guard.problems for guard in recipe.evaluate.guard)]
    for name in sets:
        head, _, rest = name.partition(":")
        path = rest if head in _SOURCES else name
        parts = path.split(":")
        for part in (":".join(parts[:length]) for length in range(len(parts), 0, -1)):  # `PATH`, `PATH:SPLIT` and so on
            if "/" in part or part.endswith((".jsonl", ".parquet")):
                yield part


def _is_local(name: str, kind: str | None) -> bool:
    if kind is not None:
        return kind in ("folder", "gguf")
    return name.startswith(("/", ".", "~")) or Path(name).exists()
