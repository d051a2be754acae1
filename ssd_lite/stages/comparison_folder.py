"""Names every file of a comparison: its recipe, its trained runs, its arms and its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_text
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import differences, dump_recipe, load_recipe
from ssd_lite.run_folder import ArmFolder, RunFolder, claim_folder, refuse_changes
from ssd_lite.stages.comparison_plan import ArmOrder, TrainedRun

# Nothing in a comparison stands on these.
_FREE = {"name", "description", "threads", "rounds", "export"}


class ComparisonFolder:
    """A comparison on disk: `runs/NAME` are ordinary run folders, `arms/NAME` one evaluated arm each."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.result = path / "comparison.json"
        self.report = path / "comparison.html"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> ComparisonFolder:
        """A new comparison, or the one that is there if its recipe is the same; UserError names what differs."""
        file = path / "compare.yaml"
        if file.is_file():
            there = load_recipe(str(file))
            changed = differences(there, recipe, set(Recipe.model_fields) - _FREE)
            # Further sets add arms and change none.
            changed = [change for change in changed if not change.startswith("compare.extra_")]
            refuse_changes(path, changed, "comparison")
            write_text(file, dump_recipe(recipe))
            return cls(path, recipe)
        claim_folder(path, file.name, recipe, "comparison")
        return cls(path, recipe)

    @classmethod
    def open(cls, path: Path) -> ComparisonFolder:
        """The comparison at `path`. Raises UserError if there is none."""
        if not (path / "compare.yaml").is_file():
            raise UserError(
                "is no comparison (no compare.yaml in it).",
                where=str(path.absolute()),
                next_step="`ssd-lite compare RECIPE` makes one.",
            )
        return cls(path, load_recipe(str(path / "compare.yaml")))

    def run(self, trained: TrainedRun) -> RunFolder:
        """The run folder of a trained arm, made if need be."""
        return RunFolder.create(self.path / "runs" / trained.name, trained.recipe)

    def arm(self, order: ArmOrder) -> ArmFolder:
        """The files of one arm."""
        return ArmFolder(self.path / "arms" / order.folder_name)

    def report_of(self, order: ArmOrder) -> dict[str, Any] | None:
        """The report of an arm, None where it is not evaluated yet."""
        file = self.arm(order).report
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
