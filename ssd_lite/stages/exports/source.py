"""What an export is made from: a model folder, or a base with its adapter, merged tensor by tensor; and its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.atomic import is_whole, write_text
from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model

if TYPE_CHECKING:
    from ssd_lite.engines.gguf.model import Weights

_ADVICE = "Name another --out, or move it away."


@dataclass(frozen=True)
class Source:
    """A model to export.

    `folder` has its tokenizer and config.json, and its weights too where `has_weights`; `origin` says what the numbers
    come from; `open` gives what is written, and may load a base.
    """

    folder: Path
    name: str
    origin: dict[str, Any]
    open: Callable[[], Path | Weights]
    has_weights: bool = True


def folder_source(folder: Path) -> Source:
    """A model folder as it is. Raises UserError for what is none."""
    from ssd_lite.engines.weights.model_folder import ModelFolder, weights_sha256

    ModelFolder(folder)
    return Source(folder, folder.absolute().name, {"weights_sha256": weights_sha256(folder)}, lambda: folder)


def adapter_source(base: Path, adapter: Path) -> Source:
    """A base folder with a LoRA adapter, or with fully trained weights, merged as `ssd-lite merge` does."""
    from ssd_lite.engines.weights.merged_weights import MergedWeights
    from ssd_lite.engines.weights.model_folder import ModelFolder, weights_sha256

    ModelFolder(base)
    if not (adapter / "adapter_config.json").is_file():
        raise UserError("holds no adapter_config.json.", where=str(adapter), next_step="Name an adapter's folder.")
    sha256 = weights_sha256(base)
    origin = {"base_sha256": sha256, "tuned_sha256": weights_sha256(adapter), "merge": ["base", "original"]}
    merged = MergedWeights(base, adapter, dtype="base", base_sha256=sha256)
    return Source(base, adapter.absolute().name, origin, lambda: merged, has_weights=False)


def tuned_source(run: RunFolder) -> Source:
    """A run's tuned model: merged/ where it is, else its base and what was trained. UserError before training."""
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.weights.merged_weights import MergedWeights
    from ssd_lite.engines.weights.model_folder import weights_sha256
    from ssd_lite.stages.merge import quantised_base

    merging, merged = run.recipe.merge, run.done("merge") if run.merged.exists() else None
    base = run.manifest().get("model", {}).get("weights_sha256")
    origin = {"base_sha256": base, "merge": [merging.dtype, merging.base]}
    if run.adapter.is_dir():
        origin["tuned_sha256"] = weights_sha256(run.adapter)
    if merged is not None and is_whole(run.merged):
        origin["weights_sha256"] = weights_sha256(run.merged)
        return Source(run.merged, run.recipe.name, origin, lambda: run.merged)
    run.require("train")
    source = base_model(run)
    folder, sha256 = hf_folder(source), source.weights_sha256
    origin["base_sha256"] = sha256

    def opened() -> Weights:
        quantised = quantised_base(run, folder)
        return MergedWeights(folder, run.adapter, dtype=merging.dtype, base_sha256=sha256, quantised=quantised)

    return Source(folder, run.recipe.name, origin, opened, has_weights=False)


def claim(path: Path, source: Source, decoding: Decoding | None, matrix: str | None = None) -> None:
    """Note beside a file what it is made from, before it is. Raises UserError if it is there and made from others.

    `matrix` is the digest of what its importance matrix is computed from.
    """
    note = path.with_name(f".{path.name}.source.json")
    origin = {**source.origin, "decoding": decoding.model_dump() if decoding else None, "imatrix": matrix}
    if path.exists() and not (note.is_file() and _same(json.loads(note.read_text(encoding="utf-8")), origin)):
        raise UserError(
            "is there and was not made from these weights and settings.", where=str(path), next_step=_ADVICE
        )
    write_text(note, json.dumps(origin) + "\n")


def _same(noted: dict[str, Any], origin: dict[str, Any]) -> bool:
    """Made the same way from the same numbers: those of the merged file, or of base and adapter where one lacks it."""
    if any(noted.get(key) != origin.get(key) for key in ("decoding", "imatrix")):
        return False
    if "weights_sha256" in noted and "weights_sha256" in origin:
        return bool(noted["weights_sha256"] == origin["weights_sha256"])
    keys = ("base_sha256", "tuned_sha256", "merge")
    return all(key in noted and noted[key] == origin.get(key) for key in keys)
