"""What fell behind in an evaluation, and the error by which `--strict` says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

GUARD_FILE = "guard.json"


class Dropped(click.ClickException):
    """The tuned model is worse than the base beyond the interval, and `--strict` asked to fail. Exit code 1."""


def drops(evaluated: Mapping[str, Any]) -> list[str]:
    """What fell beyond its interval, in words, from the summary of `evaluate`: the evaluation set and guard sets."""
    own = [f"evaluation set: {evaluated['sentence']}"] if evaluated.get("verdict") == "loss" else []
    fallen = [entry for entry in evaluated.get("guard", []) if entry["dropped"]]
    return own + [f"guard {entry['name']}: {entry['sentence']}" for entry in fallen]


def failure(evaluated: Mapping[str, Any], exported_round: str | None = None) -> Dropped | None:
    """The error that `--strict` raises, None where nothing fell. `exported_round` is named where there are several."""
    fallen = drops(evaluated)
    of = f" of round {exported_round}, the one exported," if exported_round else ""
    return Dropped(f"the tuned model{of} fell behind the base (--strict). {' '.join(fallen)}") if fallen else None
