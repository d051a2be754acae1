"""Exported files that never stop, and the error by which `--strict` says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class Endless(click.ClickException):
    """A GGUF ended none of the short prompts, and `--strict` asked to fail. Exit code 1."""


def endless(checks: Mapping[str, Any]) -> list[str]:
    """Types whose file ran into the cap on every short prompt, not counting replies cut off while they think."""
    files = (checks.get("files") or {}).items()
    return [kind for kind, found in files if found.get("prompts") and len(found["cut_off"]) == found["prompts"]]


def failure(exported: Mapping[str, Any]) -> Endless | None:
    """The error that `--strict` raises from the summary of `export`, None where every file can stop."""
    kinds = endless(exported.get("checks") or {})
    if not kinds:
        return None
    return Endless(
        f"{', '.join(kinds)}: no reply to the short prompts ended by itself (--strict); the report says more."
    )
