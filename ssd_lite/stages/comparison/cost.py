"""What an arm of a comparison learnt from and what it cost: rows, optimiser steps, tokens, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.plan import BASE, TrainedRun

_PREPARING = ("sample", "curate", "train")


def cost_of(folder: ComparisonFolder, model: str, runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """`tokens_sampled`, `tokens_trained` and `seconds`, summed over the seeds; `rows` and `steps`, one number a seed;
    `tokens_answered` and `seconds_answered` of all evaluations, the search for a decoding included.

    Samples that arms share count for each of them. Seconds are those of all processes of sampling, curating (with its
    grading) and training, also of those that were stopped. GRPO draws while it trains: its tokens are those of its
    completions, and its rows are completions too. Seconds of an evaluation are those of its last process.
    """
    cost: dict[str, Any] = {"tokens_sampled": 0, "tokens_trained": 0, "seconds": 0.0, "rows": [], "steps": []}
    for trained in runs:
        if trained.arm != model:
            continue
        manifest = folder.run(trained).manifest()
        source = manifest.get("samples_of")
        sampled = RunFolder.open(folder.path / "runs" / source).manifest() if source else manifest
        training = _summary(manifest, "train")
        rewarded = trained.recipe.train.grpo is not None
        cost["tokens_sampled"] += (
            training.get("tokens_trained", 0) if rewarded else _summary(sampled, "sample").get("tokens", 0)
        )
        cost["tokens_trained"] += training.get("tokens_read", 0)
        cost["seconds"] += sum(_seconds(sampled if stage == "sample" else manifest, stage) for stage in _PREPARING)
        cost["rows"].append(training.get("completions") if rewarded else _summary(manifest, "curate").get("rows"))
        cost["steps"].append(training.get("steps"))
    names = {BASE} if model == BASE else {trained.name for trained in runs if trained.arm == model}
    reports = [report for report in folder.reports() if report["model"] in names]
    cost["tokens_answered"] = sum(report["tokens"] for report in reports)
    cost["seconds_answered"] = float(sum(report["seconds"] for report in reports))
    return cost


def _summary(manifest: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return dict(manifest.get("stages", {}).get(stage, {}).get("summary", {}))


def _seconds(manifest: Mapping[str, Any], stage: str) -> float:
    """Of all processes that worked at a stage; a stage that was run by hand has the seconds of its last one."""
    processes = manifest.get("processes", {}).get(stage, {}).get("seconds", 0.0)
    return float(max(processes, manifest.get("stages", {}).get(stage, {}).get("seconds", 0.0)))
