"""Names every file of a comparison: its recipe, its trained runs, its arms and its result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_text
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import differences, dump_recipe, load_recipe
from ssd_lite.run_folder import ArmFolder, RunFolder, claim_folder, refuse_changes
from ssd_lite.stages.comparison import basis as comparison_basis
from ssd_lite.stages.comparison.plan import BASE, ArmOrder, TrainedRun, completions

# Nothing in a comparison stands on these.
_FREE = {"name", "description", "threads", "rounds", "export"}


class ComparisonFolder:
    """A comparison on disk: `runs/NAME` are ordinary run folders, `arms/NAME` one evaluated arm each."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.result = path / "comparison.json"
        self.report = path / "comparison.html"
        self.failure = path / "failure.txt"  # the error of a process that evaluated

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> ComparisonFolder:
        """A new comparison, or the one that is there if its recipe is the same; UserError names what differs."""
        file = path / "compare.yaml"
        if file.is_file():
            there = load_recipe(str(file))
            changed = differences(there, recipe, set(Recipe.model_fields) - _FREE)
            # Further sets add arms and change none.
            changed = [change for change in changed if not change.startswith("compare.extra_sets:")]
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
        """The run folder of a trained arm, made if need be; what nothing stands on may have changed since."""
        return RunFolder.create(self.path / "runs" / trained.name, trained.recipe)

    def arm(self, order: ArmOrder) -> ArmFolder:
        """The files of one arm."""
        return ArmFolder(self.path / "arms" / order.folder_name)

    def settle(self, now: Mapping[str, Any]) -> None:
        """Note what results stand on, as it is `now`, or hold `now` to what was noted before the first result.

        What was not noted yet is held against the results that are there: further sets, and everything in a folder of
        an older version. Raises UserError that names what changed.
        """
        noted = comparison_basis.read(self.path)
        if noted is not None:
            comparison_basis.refuse(self.path, comparison_basis.changes(noted, now))
        whole = comparison_basis.merged(noted, now)
        if whole == noted:
            return
        for file, report in self._reports():
            comparison_basis.refuse(file.parent, comparison_basis.report_changes(whole, report))
        for run in self._runs_there():
            comparison_basis.refuse(run.path, comparison_basis.run_changes(whole, run))
        comparison_basis.write(self.path, whole)

    def reports(self) -> list[dict[str, Any]]:
        """The reports of all arms that were evaluated, on every split and set."""
        return [report for _, report in self._reports()]

    def _reports(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for file in sorted((self.path / "arms").glob("*/report.json")):
            report = _read_report(file)
            if report is not None:
                yield file, report

    def models_there(self) -> dict[str, Any]:
        """The models as the first run noted them: a comparison of an older version stays at the same Hub commits."""
        found: dict[str, Any] = {}
        for run in self._runs_there():
            noted = run.manifest()
            found = {role: noted[role] for role in ("model", "teacher") if role in noted} | found
        return found

    def all_sampled(self, runs: Iterable[TrainedRun]) -> bool:
        """True where no run has samples left to draw."""
        done = {run.path.name for run in self._runs_there() if "sample" in run.manifest().get("stages", {})}
        return all(trained.name in done for trained in runs if "sample" in trained.stages)

    def _runs_there(self) -> list[RunFolder]:
        return [RunFolder.open(file.parent) for file in sorted((self.path / "runs").glob("*/recipe.yaml"))]

    def report_of(self, order: ArmOrder) -> dict[str, Any] | None:
        """The report of an arm, None where there is none yet: absent, broken, or of fewer completions than wanted.

        Raises UserError for one that stands on something else than the comparison.
        """
        folder = self.arm(order)
        report, n = _read_report(folder.report), completions(self.recipe, order)
        if report is None or report["n"] < n:
            return None
        changed = [f"completions a problem: {report['n']} → {n}"] if report["n"] > n else []
        note = comparison_basis.read(self.path)
        if note is not None:
            changed += comparison_basis.report_changes(note, report)
        if order.model != BASE:
            merged = RunFolder.open(self.path / "runs" / order.model).manifest().get("stages", {}).get("merge", {})
            sha256 = merged.get("summary", {}).get("weights_sha256", report["model_sha256"])
            if sha256 != report["model_sha256"]:
                changed.append(f"weights of {order.model}: {report['model_sha256'][:12]} → {sha256[:12]}")
        comparison_basis.refuse(folder.path, changed)
        return report


_NEEDED = (
    "per_problem",
    "pass_at_k",
    "problems",
    "grader",
    "engine",
    "gguf_type",
    "model",
    "model_sha256",
    "n",
    "tokens",
)


def _read_report(file: Path) -> dict[str, Any] | None:
    """A report as it is on disk, None where it is not there or not whole: it is made again from the arm's journals."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) and all(key in value for key in _NEEDED) else None
