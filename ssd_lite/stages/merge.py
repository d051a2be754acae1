"""The stage that merges: base model + adapter/ in, merged/ out, a plain model folder with its card."""

from __future__ import annotations

import json
import time
from typing import Any

from ssd_lite.atomic import is_whole, new_folder, write_json
from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.model_card import write_card

_SUMMARY = "ssd_lite_merge.json"


def merge(run: RunFolder) -> dict[str, Any]:
    """Merge what was trained into the base, or say what was done before.

    The summary has the tensors that changed, the largest and the Euclidean size of the change, the number format, the
    bytes of the weights and their hash.
    """
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
    write_card(run, None)
    run.finish("merge", summary, time.monotonic() - started)
    return summary


def _publish(run: RunFolder) -> None:
    from ssd_lite.engines.merge_weights import merge_folder
    from ssd_lite.engines.model_folder import ModelFolder, weight_files, weights_sha256
    from ssd_lite.engines.model_source import hf_folder

    source = base_model(run)
    base = hf_folder(source)
    with new_folder(run.merged) as part:
        dtype = run.recipe.merge.dtype
        change = merge_folder(base, run.adapter, part, dtype=dtype, base_sha256=source.weights_sha256)
        summary = {
            "changed_tensors": change.tensors,
            "max_abs_change": change.max_abs,
            "change_norm": change.norm,
            "dtype": ModelFolder(part).dtype,
            "bytes": sum(path.stat().st_size for path in weight_files(part)),
            "weights_sha256": weights_sha256(part),
            "base": {
                "name": source.name,
                "kind": source.kind,
                "revision": source.revision,
                "weights_sha256": source.weights_sha256,
                "note": source.note,
                **_licence(base),
            },
        }
        write_json(part / _SUMMARY, summary)


def _licence(base: Any) -> dict[str, str]:
    """What the base says about its licence: the front matter of its card, or the metadata of the GGUF it came from."""
    from ssd_lite.engines.model_folder import SOURCE_FILE

    card = base / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
        wanted = ("license", "license_name", "license_link")
        pairs = [line.split(":", 1) for line in front if line.partition(":")[0] in wanted]
        found = {key: value.strip().strip("\"'") for key, value in pairs if value.strip()}
        if found:
            return found
    if (base / SOURCE_FILE).is_file():
        licence = json.loads((base / SOURCE_FILE).read_text(encoding="utf-8")).get("license")
        return {"license": str(licence)} if licence else {}
    return {}
