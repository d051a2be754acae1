"""Arms of the evaluation in which quantised GGUFs of the tuned model answer; part of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ssd_lite.atomic import write_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.evaluation.arm_report import compare
from ssd_lite.stages.exports.files import gguf_path
from ssd_lite.stages.weights import Weights, tuned_gguf_weights

GGUF_FILE = "gguf.json"
_FIGURES = ("pass_at_k", "no_code_rate", "cap_rate", "mean_tokens", "samples", "tokens", "seconds")


def arm_name(gguf_type: str) -> str:
    """The folder of an arm in evaluations/."""
    return f"tuned-{gguf_type}"


def run_gguf_arms(
    run: RunFolder, tuned: Mapping[str, Any], evaluate_arm: Callable[[str, Weights], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Let each type of evaluate.gguf answer the evaluation's problems, and compare it with the arm `tuned`.

    `evaluate_arm` makes the report of an arm from its name and weights. Writes evaluations/gguf.json where a type is
    asked for. An entry has the type, the file's name, the arm's figures, `difference`: paired, its pass@k minus
    tuned's, McNemar's p, a sentence, and `is_tuned` where the arm tuned ran this very file.
    """
    entries = []
    for gguf_type in dict.fromkeys(run.recipe.evaluate.gguf):
        is_tuned = tuned["engine"] == "llama_cpp" and tuned["gguf_type"] == gguf_type
        if is_tuned:  # never made with a matrix, see `tuned_gguf`
            report, file = tuned, gguf_path(run.gguf, run.recipe.name, gguf_type)
        else:
            weights = tuned_gguf_weights(run, gguf_type)
            report, file = evaluate_arm(arm_name(gguf_type), weights), weights.file
        paired = compare(tuned, report, run.recipe.evaluate.seed)
        entries.append(
            {
                "type": gguf_type,
                "file": file.name,
                "is_tuned": is_tuned,
                **{key: report[key] for key in _FIGURES},
                "difference": paired["pass_at_k"],
                "mcnemar_p": paired["mcnemar_p"],
                "smallest_difference": paired["smallest_difference"],
                "verdict": paired["verdict"],
                "sentence": paired["sentence"],
            }
        )
    if entries:
        write_json(run.path / "evaluations" / GGUF_FILE, entries)
    return entries
