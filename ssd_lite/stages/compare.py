"""`ssd-lite compare`: trains every arm, chooses decodings on the dev split, reports all on the test split."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_json, write_text
from ssd_lite.errors import Stopped, UserError
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.answers import take
from ssd_lite.stages.child import run_command, stop_signals
from ssd_lite.stages.comparison_arms import problems_of
from ssd_lite.stages.comparison_folder import ComparisonFolder
from ssd_lite.stages.comparison_page import render
from ssd_lite.stages.comparison_plan import (
    BASE,
    ArmOrder,
    TrainedRun,
    candidates,
    trained_runs,
    training_decoding,
)
from ssd_lite.stages.comparison_rows import BEST, CONTROLS, MATCHED, TRAINING, Row, best_decoding, numbers
from ssd_lite.stages.comparison_verdict import verdict
from ssd_lite.stages.pipeline import StageFailed, check_machine, run_stages

_NOTHING = "nothing_to_learn"  # the note of a stage in its run's manifest
Say = Callable[[str], None]


def prepare(path: Path, recipe: Recipe) -> ComparisonFolder:
    """The comparison at `path`, new or gone on with. What it needs is looked for before anything is written."""
    if not (path / "compare.yaml").is_file():
        for trained in trained_runs(recipe):
            check_machine(trained.recipe)
        _need_tests(recipe)
    return ComparisonFolder.create(path, recipe)


def _need_tests(recipe: Recipe) -> None:
    """Raise UserError now where an arm that grades the training problems would find no tests in them, hours later."""
    wanted = [arm for arm in recipe.compare.arms if arm in ("rft", "grpo")]
    if not wanted:
        return
    chosen = load_problems(recipe.problems.train, role="train")
    without = sum(p.test is None for p in take(chosen.problems, recipe.problems.train_limit, recipe.sample.seed))
    if without:
        raise UserError(
            f"{without} training problems have no tests, which {' and '.join(wanted)} needs.",
            where="problems.train",
            next_step="Take a set with tests (starter, mbpp:train), or leave these arms out of compare.arms.",
        )


def compare(folder: ComparisonFolder, *, say: Say, stdout: int | None = None) -> dict[str, Any]:
    """Do what is still missing, one process a stage and a model; write comparison.json and comparison.html.

    Raises Stopped after a signal, UserError where something must be mended, StageFailed where a process broke.
    """
    with run_lock(folder.path) as lock, stop_signals() as asked:
        work = _Work(folder, lock, asked, say, stdout)
        runs = trained_runs(folder.recipe)
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


class _Work:
    """What is done in processes of its own, and read back from the files they leave."""

    def __init__(
        self, folder: ComparisonFolder, lock: int, asked: Sequence[float], say: Say, stdout: int | None
    ) -> None:
        self._folder, self._lock, self._asked, self._say, self._stdout = folder, lock, asked, say, stdout

    def train(self, trained: TrainedRun, runs: Sequence[TrainedRun]) -> str | None:
        """Sample, curate, train and merge one run, with the samples of an earlier run where they are the same.

        Returns why an arm that learns from correct programs is left out, where the base earned it nothing to learn
        from; that the other arms can be compared all the same.
        """
        run = self._folder.run(trained)
        if _NOTHING in run.manifest():
            run.note(_NOTHING, None)  # of an earlier try
        share_samples(run, [self._folder.run(other) for other in runs[: runs.index(trained)]])
        self._say(f"{trained.name}:")
        try:
            run_stages(run, trained.stages, self._asked, say=self._say, stdout=self._stdout)
        except UserError:
            why = run.manifest().get(_NOTHING)
            if why is None or trained.arm not in ("rft", "grpo"):
                raise
            why = str(why).rstrip(".")
            self._say(f"{trained.name} is left out: {why}.")
            return why
        return None

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
            ended = run_command(arguments, self._lock, self._stdout, self._asked)
            if ended.stopped:
                raise Stopped("The comparison stopped while it evaluated.")
            if ended.code:
                raise StageFailed(
                    f"{self._folder.path}: evaluating {model} ended with exit code {ended.code}; what it said stands "
                    "above. The same command goes on."
                )

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


def _cost(folder: ComparisonFolder, model: str, runs: Sequence[TrainedRun]) -> dict[str, float]:
    """Tokens and seconds of sampling and training, over the seeds; shared samples count for each arm that uses them."""
    cost = {"tokens_sampled": 0, "tokens_trained": 0, "seconds": 0.0}
    for trained in runs:
        if trained.arm != model:
            continue
        run = folder.run(trained)
        source = run.manifest().get("samples_of")
        stages = run.manifest()["stages"]
        sampled = RunFolder.open(run.path.parent / source).manifest()["stages"] if source else stages
        cost["tokens_sampled"] += sampled.get("sample", {}).get("summary", {}).get("tokens", 0)
        cost["tokens_trained"] += stages["train"]["summary"].get("tokens_read", 0)
        cost["seconds"] += sampled.get("sample", {}).get("seconds", 0.0) + stages["train"]["seconds"]
    return cost


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
        return [numbers(row, controls, _cost(folder, row.model, runs), seed) for row in found]

    test = table(rows)
    return {
        **verdict(test, len(rows[0].reports[0]["per_problem"])),
        "sets": {name: problems_of(folder, name)[1] for name in ("dev", "test", *extra)},
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
