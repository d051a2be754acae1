"""The samples of a run as a data set for others: one JSON object a line, prompts as text, the law beside each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.atomic import replace_when_whole
from ssd_lite.journal import read_records
from ssd_lite.records import sample_from_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import sample_key
from ssd_lite.stages.base_model import base_model


@dataclass(frozen=True)
class Written:
    """The file, its rows, and how many of them were trained on; None before curating."""

    path: Path
    rows: int
    kept: int | None


def write_samples(run: RunFolder, out: Path) -> Written:
    """Write `out` by one rename, in the order of (problem, index): the same bytes each time."""
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(hf_folder(base_model(run)))
    kept, records = _kept(run), sorted(read_records(run.samples), key=sample_key)
    out.parent.mkdir(exist_ok=True)
    with replace_when_whole(out) as part, open(part, "w", encoding="utf-8") as file:
        for record in records:
            row = _row(record, tokenizer.decode(record["prompt_ids"]), kept)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Written(out, len(records), None if kept is None else len(kept))


def _kept(run: RunFolder) -> set[tuple[str, int]] | None:
    if run.done("curate") is None or not run.train_rows.is_file():
        return None
    rows = (json.loads(line) for line in run.train_rows.read_bytes().splitlines())
    return {(row["problem_id"], row["index"]) for row in rows}


def _row(record: Mapping[str, Any], prompt: str, kept: set[tuple[str, int]] | None) -> dict[str, Any]:
    sample = sample_from_json(record)
    law = sample.settings
    return {
        "problem_id": sample.problem_id,
        "index": sample.index,
        "prompt": prompt,
        "completion": sample.completion,
        "finish_reason": sample.finish_reason,
        "kept": None if kept is None else sample.key in kept,
        "temperature": law.temperature,
        "top_k": law.top_k,
        "top_p": law.top_p,
        "min_p": law.min_p,
        "max_new_tokens": law.max_new_tokens,
        "seed": sample.seed,
        "engine": sample.engine,
        "entropy_nats": sample.entropy_nats,
        "survivors": sample.survivors,
        "prompt_ids": list(sample.prompt_ids),
        "completion_ids": list(sample.completion_ids),
    }
