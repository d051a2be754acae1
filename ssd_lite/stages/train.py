"""The stage that trains: train.jsonl and the base model in, adapter/ and metrics.jsonl out."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.atomic import is_whole
from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model

if TYPE_CHECKING:
    from ssd_lite.engines.batching import TrainingRow


def train(run: RunFolder) -> dict[str, Any]:
    """Train on the curated rows, or say what was done before; goes on from the newest checkpoint of a stopped run.

    The summary counts steps, tokens trained and read, tokens read a second, first and final loss, the norm of the
    weights' change, and this process's peak resident memory in bytes.
    """
    done = run.done("train")
    if done is not None and is_whole(run.adapter):
        return done
    run.require("curate")
    rows = read_rows(run.train_rows, run.recipe.train.max_length)
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.peft_model import BaseModel
    from ssd_lite.engines.trainer import TrainingFiles, train_model

    started = time.monotonic()
    source = base_model(run)
    run.start("train", run.metrics)
    base = BaseModel(source.name, source.revision, source.weights_sha256)
    files = TrainingFiles(run.checkpoints, run.metrics, run.adapter, run.log)
    summary = train_model(
        rows,
        hf_folder(source),
        base,
        files,
        run.recipe.train,
        threads=run.recipe.threads,
        temperature=run.recipe.sample.temperature,
    )
    summary = {"method": run.recipe.train.method, "engine": "peft", **summary, "peak_rss_bytes": peak_rss_bytes()}
    if os.environ.get("RANK", "0") == "0":  # under `accelerate launch` one process writes
        run.finish("train", summary, time.monotonic() - started)
    return summary


def read_rows(path: Path, max_length: int) -> list[TrainingRow]:
    """The rows of train.jsonl. Raises UserError for a bad line and for a row above `max_length` tokens."""
    from ssd_lite.engines.batching import TrainingRow

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
            row = TrainingRow(_ids(value["prompt_ids"]), _ids(value["completion_ids"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"this line is no training row ({error!r}).", where=where, next_step="Curate again."
            ) from error
        if len(row) > max_length:
            raise UserError(f"{len(row)} tokens, above train.max_length {max_length}.", where=where)
        rows.append(row)
    return rows


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError("ids must be a non-empty list of token ids")
    return tuple(value)


def peak_rss_bytes() -> int:
    """Most memory this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
