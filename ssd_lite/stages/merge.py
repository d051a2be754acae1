"""The stage that merges: base model + adapter/ in, merged/ out, a plain model folder with its card."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.atomic import is_whole, new_folder, write_json
from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.licences import licence_of
from ssd_lite.stages.merge_check import check_lines, check_merge
from ssd_lite.stages.pages.model_card import write_card

if TYPE_CHECKING:
    from ssd_lite.engines.weights.merged_weights import Dequantised

_SUMMARY = "ssd_lite_merge.json"


def merge(run: RunFolder) -> dict[str, Any]:
    """Merge what was trained into the base, or say what was done before.

    The summary has the tensors that changed, the largest and the Euclidean size of the change, the number format, the
    bytes of the weights, their hash, and as `check` how far the merged model is from the trained one.
    """
    if not run.merged.exists():
        _forget_merging(run)
    done = run.done("merge")
    if done is not None and is_whole(run.merged):
        return done
    run.require("train")
    started = time.monotonic()
    if run.merged.exists() and not is_whole(run.merged):
        raise UserError(
            "a file in it is missing or cut.", where=str(run.merged), next_step="Delete this folder and merge again."
        )
    if not run.merged.exists():
        _publish(run)
    summary: dict[str, Any] = json.loads((run.merged / _SUMMARY).read_text(encoding="utf-8"))
    summary["check"] = _checked(run)
    write_card(run, None)
    run.finish("merge", summary, time.monotonic() - started)
    return summary


def _forget_merging(run: RunFolder) -> None:
    """A merged folder that was deleted may come back with other settings: what stood on the old one is done no more."""
    stages = run.manifest().get("stages", {})
    if "merge" in stages and stages["merge"]["settings_digest"] != run.settings_digest("merge"):
        stood_on_it = ("merge", "evaluate", "export", "report")
        run.note("stages", {stage: entry for stage, entry in stages.items() if stage not in stood_on_it})


def _checked(run: RunFolder) -> dict[str, Any]:
    """Outside `_publish`, so that a kill meanwhile costs the check and not the merge."""
    from ssd_lite.engines.model_source import hf_folder

    started = time.monotonic()
    check = check_merge(run, hf_folder(base_model(run)))
    if "skipped" not in check:
        check["seconds"] = round(time.monotonic() - started, 1)
    for line in check_lines(check):
        run.log(line)
    return check


def quantised_base(run: RunFolder, base: Path) -> Dequantised | None:
    """The NF4 base where merge.base asks for it. It is freed with the caller's reference, before the check."""
    if run.recipe.merge.base == "original":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingLibraryError("bitsandbytes", needed_for="merge.base: dequantised", extra="qlora")
    from ssd_lite.engines.training.nf4_base import Nf4Base

    return Nf4Base(base)


def _publish(run: RunFolder) -> None:
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.weights.merge import merge_folder
    from ssd_lite.engines.weights.model_folder import ModelFolder, weight_files, weights_sha256

    source = base_model(run)
    base = hf_folder(source)
    with new_folder(run.merged) as part:
        dtype = run.recipe.merge.dtype
        change = merge_folder(
            base,
            run.adapter,
            part,
            dtype=dtype,
            base_sha256=source.weights_sha256,
            quantised=quantised_base(run, base),
        )
        summary = {
            "changed_tensors": change.tensors,
            "max_abs_change": change.max_abs,
            "change_norm": change.norm,
            "dtype": ModelFolder(part).dtype,
            "bytes": sum(path.stat().st_size for path in weight_files(part)),
            "weights_sha256": weights_sha256(part),
            "onto": run.recipe.merge.base,
            "base": {
                "name": source.name,
                "kind": source.kind,
                "revision": source.revision,
                "weights_sha256": source.weights_sha256,
                "note": source.note,
                **licence_of(base),
            },
        }
        write_json(part / _SUMMARY, summary)
