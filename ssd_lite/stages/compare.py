"""`ssd-lite compare`: trains every arm, chooses decodings on the dev split, reports all on the test split."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_json, write_text
from ssd_lite.errors import EXIT_USER_ERROR, Stopped, UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.child import run_command, stop_signals
from ssd_lite.stages.comparison import basis as comparison_basis
from ssd_lite.stages.comparison.cost import cost_of
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.page import render
from ssd_lite.stages.comparison.plan import (
    BASE,
    ArmOrder,
    TrainedRun,
    candidates,
    trained_runs,
    training_decoding,
)
from ssd_lite.stages.comparison.rows import BEST, CONTROLS, MATCHED, TRAINING, Row, best_decoding, numbers
from ssd_lite.stages.comparison.sets import check_sets, check_solutions, set_names
from ssd_lite.stages.comparison.verdict import verdict
from ssd_lite.stages.nothing_left import nothing_left
from ssd_lite.stages.pipeline import StageFailed, check_machine, run_stages

Say = Callable[[str], None]


def prepare(path: Path, recipe: Recipe) -> ComparisonFolder:
    """The comparison at `path`, new or gone on with. What it needs is looked for before anything is written."""
    runs = trained_runs(recipe)
    if not (path / "compare.yaml").is_file():
        for trained in runs:
            check_machine(trained.recipe)
    check_sets(recipe, runs)
    known = (comparison_basis.read(path) or {}).get("sets", {})
    check_solutions(recipe, [name for name in set_names(recipe) if name not in known])
    return ComparisonFolder.create(path, recipe)


def compare(folder: ComparisonFolder, *, say: Say, stdout: int | None = None) -> dict[str, Any]:
    """Do what is still missing, one process a stage and a model; write comparison.json and comparison.html.

    Raises Stopped after a signal, UserError where something must be mended, StageFailed where a process broke.
    """
    with run_lock(folder.path) as lock, stop_signals() as asked:
        runs = trained_runs(folder.recipe)
        work = Work(folder, _settled(folder, runs), lock, asked, say, stdout)
        left_out = {trained.name: why for trained in runs if (why := work.train(trained, runs)) is not None}
        runs = [trained for trained in runs if trained.name not in left_out]
        if not runs:
            raise UserError(
                "no arm had anything to learn from, so there is nothing to compare.",
                where="compare.arms",
                next_step="Add ssd, or take easier training problems.",
            )
        chosen = work.choose(runs)
        rows = work.rows(runs, chosen, "test")
        extra = {name: work.rows(runs, chosen, name) for name in folder.recipe.compare.extra_sets}
    result = {**_result(folder, runs, chosen, rows, extra), "left_out": left_out}
    write_json(folder.result, result)
    write_text(folder.report, render(folder.recipe, result))
    return result


def _settled(folder: ComparisonFolder, runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Note what results stand on, or hold everything to the note; returns it."""
    models = (comparison_basis.read(folder.path) or {}).get("models") or folder.models_there()
    now = comparison_basis.evaluated_with(folder.recipe)
    now |= comparison_basis.trained_with(folder.recipe, runs, models)
    if folder.all_sampled(runs):
        del now["sampling_engine"]  # the machine that goes on need not have it
    folder.settle(now)
    return comparison_basis.read(folder.path) or {}


class Work:
    """What is done in processes of its own, and read back from the files they leave."""

    def __init__(
        self,
        folder: ComparisonFolder,
        note: dict[str, Any],
        lock: int,
        asked: Sequence[float],
        say: Say,
        stdout: int | None,
    ) -> None:
        self._folder, self._note, self._lock, self._asked = folder, note, lock, asked
        self._say, self._stdout = say, stdout

    def train(self, trained: TrainedRun, runs: Sequence[TrainedRun]) -> str | None:
        """Sample, curate, train and merge one run, with the samples of an earlier run where they are the same.

        Returns why an arm that learns from correct programs is left out, where the base earned it nothing to learn
        from; that the other arms can be compared all the same.
        """
        run = self._folder.run(trained)
        if "merge" not in run.manifest().get("stages", {}):
            comparison_basis.hold_training_set(self._note, run)
        if "model" not in run.manifest():
            run.note("model", self._note["models"]["model"])  # every arm starts from the very same weights
        share_samples(run, [self._folder.run(other) for other in runs[: runs.index(trained)]])
        self._say(f"{trained.name}:")
        work = partial(run_stages, run, trained.stages, self._asked, say=self._say, stdout=self._stdout)
        why: str | None = None
        if trained.is_graded:
            why = nothing_left(run, work)
        else:
            work()
        if why is not None:
            self._say(f"{trained.name} is left out: {why}.")
        comparison_basis.refuse(run.path, comparison_basis.run_changes(self._note, run))
        return why

    def evaluate(self, orders: Iterable[ArmOrder]) -> None:
        """Evaluate the arms that are missing, one process a model."""
        missing: dict[str, list[ArmOrder]] = {}
        for order in dict.fromkeys(orders):
            if self._folder.report_of(order) is None:
                missing.setdefault(order.model, []).append(order)
        for model, wanted in missing.items():
            if self._asked:
                raise Stopped("The comparison stopped between two arms.")
            self._say(f"evaluate {model}: {len(wanted)} arms")
            arguments = ["compare", str(self._folder.path), *(part for o in wanted for part in ("--arm", o.name))]
            self._folder.failure.unlink(missing_ok=True)
            ended = run_command(arguments, self._lock, self._stdout, self._asked)
            if ended.stopped:
                raise Stopped("The comparison stopped while it evaluated.")
            if ended.code == EXIT_USER_ERROR:
                raise self._error(model)
            if ended.code:
                raise StageFailed(
                    f"{self._folder.path}: evaluating {model} ended with exit code {ended.code}; what it said stands "
                    "above. The same command goes on."
                )

    def _error(self, model: str) -> UserError:
        """The error that ended the process which evaluated a model, in its own words where it left them."""
        try:
            words = self._folder.failure.read_text(encoding="utf-8")
            self._folder.failure.unlink()
        except FileNotFoundError:
            words = f"evaluating {model} cannot go on; its error stands above."
        return UserError(words, next_step="Once that is mended, the same command goes on.")

    def choose(self, runs: Sequence[TrainedRun]) -> dict[str, dict[Decoding, list[dict[str, Any]]]]:
        """For the base and each arm of compare.best: the dev reports of every decoding tried, one a seed."""
        models = {BASE: [BASE]}
        models |= {arm: [r.name for r in runs if r.arm == arm] for arm in self._folder.recipe.compare.best}
        tried = candidates(self._folder.recipe)
        orders = {
            arm: {decoding: [ArmOrder(name, decoding, "dev") for name in names] for decoding in tried}
            for arm, names in models.items()
            if names
        }
        self.evaluate(o for by_decoding in orders.values() for group in by_decoding.values() for o in group)
        return {arm: {d: self._reports(group) for d, group in found.items()} for arm, found in orders.items()}

    def rows(
        self, runs: Sequence[TrainedRun], tried: dict[str, dict[Decoding, list[dict[str, Any]]]], problems: str
    ) -> list[Row]:
        """The rows of the table on a set: each model under each role of decoding."""
        recipe = self._folder.recipe
        wanted = [(BASE, MATCHED, recipe.evaluate.base), (BASE, TRAINING, training_decoding(recipe))]
        wanted.append((BASE, BEST, best_decoding(tried[BASE])))
        for arm in dict.fromkeys(trained.arm for trained in runs):
            wanted.append((arm, MATCHED, recipe.evaluate.base))
            if arm in tried:
                wanted.append((arm, BEST, best_decoding(tried[arm])))
        orders = {
            (model, role): [ArmOrder(name, decoding, problems) for name in _names(model, runs)]
            for model, role, decoding in wanted
        }
        self.evaluate(order for group in orders.values() for order in group)
        return [Row(m, role, d, self._reports(orders[m, role])) for m, role, d in wanted]

    def _reports(self, orders: Iterable[ArmOrder]) -> list[dict[str, Any]]:
        found = [self._folder.report_of(order) for order in orders]
        return [report for report in found if report is not None]


def _names(model: str, runs: Sequence[TrainedRun]) -> list[str]:
    return [BASE] if model == BASE else [trained.name for trained in runs if trained.arm == model]


def share_samples(run: RunFolder, others: Sequence[RunFolder]) -> None:
    """Copy the samples of a run that samples the same: arms differ in training alone, and nothing is drawn twice."""
    if run.samples.exists() or run.done("sample") is not None:
        return
    digest = run.settings_digest("sample")
    for other in others:
        if other.settings_digest("sample") == digest and other.done("sample") is not None:
            if other.targets.is_file():
                run.targets.parent.mkdir(exist_ok=True)
                shutil.copyfile(other.targets, run.targets)
            part = run.samples.with_name(f".{run.samples.name}.part")
            shutil.copyfile(other.samples, part)
            run.note("samples_of", other.path.name)
            part.rename(run.samples)  # last: it says that all is there
            return


def _result(
    folder: ComparisonFolder,
    runs: Sequence[TrainedRun],
    tried: dict[str, dict[Decoding, list[dict[str, Any]]]],
    rows: Sequence[Row],
    extra: dict[str, list[Row]],
) -> dict[str, Any]:
    def table(found: Sequence[Row]) -> list[dict[str, Any]]:
        controls = [row for row in found if (row.model, row.role) in CONTROLS]
        seed = folder.recipe.evaluate.seed
        return [numbers(row, controls, cost_of(folder, row.model, runs), seed) for row in found]

    test = table(rows)
    answered = {"dev": next(iter(tried[BASE].values()))[0]}
    answered |= {name: dict(found[0].reports[0]) for name, found in {"test": rows, **extra}.items()}
    return {
        **verdict(test, len(rows[0].reports[0]["per_problem"])),
        "sets": {name: report["problems"] for name, report in answered.items()},
        "n": folder.recipe.evaluate.n,
        "grader": rows[0].reports[0]["grader"]["tier"],
        "seeds": list(folder.recipe.compare.seeds),
        "rows": test,
        "extra": {name: table(found) for name, found in extra.items()},
        "tried": {
            arm: [
                {"decoding": d.model_dump(), "pass_at_1": [r["pass_at_k"]["1"]["mean"] for r in reports]}
                for d, reports in by_decoding.items()
            ]
            for arm, by_decoding in tried.items()
        },
        "chosen": {arm: best_decoding(by_decoding).model_dump() for arm, by_decoding in tried.items()},
    }
