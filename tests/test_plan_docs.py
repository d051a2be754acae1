"""The tables of docs/plan.md and docs/hardware.md are what the plan says; rewrite: `python tests/plan_tables.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from plan_tables import DATA, TABLES, between, recipe_plans

from ssd_lite.plan.cards import cards
from ssd_lite.recipe_file import packaged_recipes


@pytest.mark.parametrize(
    ("place", "table"), TABLES.items(), ids=lambda part: part[1] if isinstance(part, tuple) else ""
)
def test_a_table_of_the_docs_is_what_the_plan_says(place: tuple[Path, str], table: Callable[[], str]) -> None:
    page, name = place
    found = between(page.read_text(encoding="utf-8"), name)
    assert found[2] == table(), "run: python tests/plan_tables.py"


def test_every_recipe_on_every_card_is_in_the_table() -> None:
    plans = recipe_plans()
    assert set(plans) == set(packaged_recipes())
    assert all(set(of) == {"cpu", *cards()} for of in plans.values())


def test_the_measurements_are_those_of_the_bench() -> None:
    import runpy

    bench = runpy.run_path(str(DATA.parent / "bench" / "plan_memory.py"))
    recorded = json.loads((DATA / "plan_memory.json").read_text(encoding="utf-8"))
    assert {
        name: {key: value for key, value in case.items() if key != "peak_rss_bytes"} for name, case in recorded.items()
    } == bench["CONFIGURATIONS"]
