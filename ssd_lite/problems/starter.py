"""The starter set: small Python tasks written for this project, shipped in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ssd_lite.problems.jsonl import load_jsonl
from ssd_lite.records import Problem

DATA = Path(__file__).parent / "data"


def load_starter(role: Literal["train", "evaluate"]) -> list[Problem]:
    """Problems with tests, a golden solution and a difficulty; no task is in both roles.

    SSD reads the prompts of `train` alone; its tests are for the controls that learn from correctness.
    """
    return load_jsonl(starter_file(role))


def starter_file(role: Literal["train", "evaluate"]) -> Path:
    """The file of package data that holds this half of the set."""
    return DATA / f"starter_{role}.jsonl"
