"""The stage that trains: train.jsonl and the base model in, adapter/ and metrics.jsonl out; GRPO stands beside it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.atomic import is_whole
from ssd_lite.engines.host_memory import peak_rss_bytes
from ssd_lite.errors import UserError
from ssd_lite.progress import tell
from ssd_lite.records import Span
from ssd_lite.run_folder import RunFolder
from ssd_lite.span_file import read_span
from ssd_lite.stages.base_model import base_model

if TYPE_CHECKING:
    from ssd_lite.engines.sampling.targets import Targets
    from ssd_lite.engines.training.batching import TrainingRow
    from ssd_lite.engines.training.engine_choice import Choice


_ENGINE = "train_engine"  # the key of the manifest


def train(run: RunFolder) -> dict[str, Any]:
    """Train on the curated rows, or say what was done before; goes on from the newest checkpoint of a stopped run.

    The summary counts steps, tokens trained and read, tokens read a second, first and final loss, the norm of the
    weights' change, and this process's peak resident memory in bytes.
    """
    done = run.done("train")
    if done is not None and is_whole(run.adapter):
        return done
    if run.recipe.train.grpo is not None:
        from ssd_lite.stages.train_grpo import train_by_reward

        return train_by_reward(run)
    run.require("curate")
    settings = run.recipe.train
    rows = read_rows(run.train_rows, settings.max_length, run.targets, soft=settings.target == "soft")
    chosen = choose(run)  # before transformers is imported
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.training.peft_model import BaseModel
    from ssd_lite.engines.training.trainer import TrainingFiles, train_model

    started = time.monotonic()
    source = base_model(run)
    run.start("train", run.metrics)
    run.note(_ENGINE, chosen.engine)
    base = BaseModel(source.name, source.revision, source.weights_sha256)
    files = TrainingFiles(run.checkpoints, run.metrics, run.adapter, run.log)
    summary = train_model(
        rows,
        hf_folder(source),
        base,
        files,
        run.recipe.train,
        engine=chosen.engine,
        threads=run.recipe.threads,
        temperature=run.recipe.sample.temperature,
    )
    about = {"method": run.recipe.train.method, "engine": chosen.engine, "engine_reason": chosen.reason}
    summary = {**about, **summary, "peak_rss_bytes": peak_rss_bytes()}
    if os.environ.get("RANK", "0") == "0":  # under `accelerate launch` one process writes
        run.finish("train", summary, time.monotonic() - started)
    return summary


def choose(run: RunFolder) -> Choice:
    """The engine that trains, said in the log; Unsloth is imported by this. Raises UserError as `choose_engine`.

    A training with checkpoints goes on with the engine that made them: the other one orders an optimiser's state in a
    way of its own.
    """
    from ssd_lite.engines.training.engine_choice import Choice, Machine, choose_engine

    settings, begun_with = run.recipe.train, run.manifest().get(_ENGINE)
    if begun_with is not None and any(run.checkpoints.glob("checkpoint-*")):
        chosen = choose_engine(settings.model_copy(update={"engine": begun_with}), Machine.here())
        chosen = Choice(chosen.engine, "this training was begun with it")
    else:
        chosen = choose_engine(settings, Machine.here())
    line = f"train: engine {chosen.engine}, because {chosen.reason}"
    run.log(line)
    tell(line + "\n")
    if chosen.engine == "unsloth":
        from ssd_lite.engines.training import unsloth_model

        unsloth_model.prepare(run.path / "unsloth_compiled")
    return chosen


def read_rows(path: Path, max_length: int, targets: Path, *, soft: bool = False) -> list[TrainingRow]:
    """The rows of train.jsonl at `path`, with the laws their tokens were drawn from where those were kept.

    Raises UserError for a bad line, for a row above train.max_length tokens, and where train.target is soft and the
    laws are missing or are not those of the row.
    """
    from ssd_lite.engines.training.batching import TrainingRow

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}.", where=str(path), next_step=f"Type: ssd-lite curate {path.parent}"
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
            row = TrainingRow(_ids(value["prompt_ids"]), _ids(value["completion_ids"]), soft=soft)
            span = Span(**value["targets"]) if value.get("targets") else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"this line is no training row ({error!r}).", where=where, next_step="Curate again."
            ) from error
        if len(row) > max_length:
            raise UserError(f"{len(row)} tokens, above train.max_length {max_length}.", where=where)
        rows.append(replace(row, targets=_targets(targets, span, row, where)))
    return rows


def _targets(path: Path, span: Span | None, row: TrainingRow, where: str) -> Targets | None:
    """The laws of a row; None where they were not kept, or were deleted since and are not needed."""
    from ssd_lite.engines.sampling.targets import Targets

    if span is None or not (row.soft or path.is_file()):
        if row.soft:
            raise UserError(
                "this row has no soft targets.",
                where=where,
                next_step="Sample with sample.targets: keep in a new run, or set train.target: sampled.",
            )
        return None
    without = "" if row.soft else f", or move {path} away: train.target sampled does without"
    mend = f"Curate again; if that changes nothing, sample again in a new folder with --out{without}."
    try:
        targets = Targets.from_bytes(read_span(path, span), len(row.completion_ids))
    except ValueError as error:
        raise UserError(f"its laws in {path}: {error}.", where=where, next_step=mend) from error
    outside = targets.outside(row.completion_ids)
    if len(outside):
        raise UserError(
            f"{len(outside)} of its {len(row.completion_ids)} tokens cannot have been drawn from the laws kept for "
            f"them in {path.name}, first the one at place {outside[0]}: this row or that file was changed.",
            where=where,
            next_step=mend,
        )
    return targets


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError("ids must be a non-empty list of token ids")
    return tuple(value)
