"""One arm: a model under one decoding answers a problem set, is graded and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssd_lite.atomic import write_json
from ssd_lite.errors import UserError
from ssd_lite.grading.extract import Block
from ssd_lite.grading.submissions import Grading
from ssd_lite.problems.problem_set import ProblemSet
from ssd_lite.records import Grade, Problem, Sample
from ssd_lite.run_folder import ArmFolder
from ssd_lite.stages.answers import Answering, answer, read_samples
from ssd_lite.stages.correctness import grade_samples
from ssd_lite.stages.evaluation.arm_report import arm_numbers


def describe(chosen: ProblemSet, problems: Sequence[Problem], golden: str) -> dict[str, Any]:
    """What a report says of its problem set."""
    body = {"name": chosen.name, "count": len(problems), "sha256": chosen.sha256}
    return {**body, "note": chosen.note, "golden": golden}


@dataclass(frozen=True)
class Arm:
    """One model under one decoding on one list of problems."""

    files: ArmFolder
    problems: Sequence[Problem]
    how: Answering
    ks: Sequence[int]
    block: Block

    def evaluate(self, grader: Grading, problem_set: dict[str, Any], model: str) -> dict[str, Any]:
        """Sample, grade and count; each goes on where it was. Writes and returns report.json."""
        self._hold_to({"problems_sha256": problem_set["sha256"], "tier": grader.tier, "block": self.block})
        work = answer(self.problems, self.how, self.files.samples, f"evaluate {self.files.name}")
        samples = sorted(read_samples(self.files.samples), key=lambda s: s.key)
        grades = self._grades(grader, samples)
        numbers = arm_numbers(self.problems, samples, grades, ks=self.ks, seed=self.how.seed, block=self.block)
        settings = self.how.settings
        report = {
            "arm": self.files.name,
            "model": model,
            "model_sha256": self.how.model_hash,
            "engine": self.how.engine,
            "gguf_type": self.how.gguf_type,
            "settings": {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "top_p": settings.top_p,
                "min_p": settings.min_p,
                "max_new_tokens": settings.max_new_tokens,
            },
            "seed": self.how.seed,
            "n": self.how.n,
            "k": list(self.ks),
            "block": self.block,
            "problems": problem_set,
            "grader": grader.describe(),
            **numbers,
            "tokens": work["tokens"],
            "seconds": work["seconds"],
        }
        write_json(self.files.report, report)
        return report

    def _hold_to(self, grading: dict[str, str]) -> None:
        """Note what the results stand on beyond their records. Raises UserError if others stand there already."""
        facts = {**grading, "gguf_type": self.how.gguf_type}
        file = self.files.path / "made_with.json"
        if file.is_file():
            noted = json.loads(file.read_text(encoding="utf-8"))
            changed = [f"{key}: {noted.get(key)} → {value}" for key, value in facts.items() if noted.get(key) != value]
            if changed:
                raise UserError(
                    f"holds results that were made otherwise ({'; '.join(changed)}), and two kinds are not mixed.",
                    where=str(self.files.path),
                    next_step="Name another --out, or move the files in it away.",
                )
        else:
            write_json(file, facts)

    def _grades(self, grader: Grading, samples: Sequence[Sample]) -> list[Grade]:
        label = f"grade {self.files.name}"
        return grade_samples(grader, samples, self.problems, self.files.grades, self.block, label)
