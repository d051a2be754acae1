"""Each round against the base that the run began with, on the evaluation set and on the guard's sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.evaluation.arm_report import compare
from ssd_lite.stages.evaluation.guard import arm_folder, guard_names, guard_verdict


def against_base(run: RunFolder, inner: RunFolder) -> dict[str, Any]:
    """The tuned model of a round against the base of `run`, from the reports that both have; nothing is sampled.

    `verdict`, `sentence` and `difference` (by k) of the evaluation set, and `guard`: for each set its name, paired
    `difference`, McNemar's p, `dropped` and a sentence. Round 1 is `run` itself. Raises UserError where a report is
    missing, or the set was another one then.
    """
    seed = run.recipe.evaluate.seed
    paired = _paired(run.arm("base").report, inner.arm("tuned").report, seed)
    sets = [
        {
            "name": name,
            **guard_verdict(
                _paired(arm_folder(run, name, "base").report, arm_folder(inner, name, "tuned").report, seed)
            ),
        }
        for name in guard_names(run.recipe.evaluate.guard)
    ]
    figures = {"verdict": paired["verdict"], "sentence": paired["sentence"], "difference": paired["pass_at_k"]}
    return {**figures, "guard": sets}


def _paired(base: Path, tuned: Path, seed: int) -> dict[str, Any]:
    try:
        first, later = (json.loads(file.read_text(encoding="utf-8")) for file in (base, tuned))
        if first["problems"]["sha256"] != later["problems"]["sha256"]:
            raise ValueError(f"the set {first['problems']['name']} is another one now")
        return compare(first, later, seed)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be compared with the base in {base} ({error}).",
            where=str(tuned),
            next_step="Was the set changed between the rounds? Start a new run with --out.",
        ) from error
