"""What a report is made of: both arms' numbers, their comparison, the training steps and some pairs of samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.journal import read_records
from ssd_lite.records import Grade, Sample, grade_from_json, sample_from_json
from ssd_lite.run_folder import ArmFolder, RunFolder

ARMS = ("base", "tuned")
TIERS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Pair:
    """One problem's first sample of both arms with their verdicts; `prompt` is what the models read, "" if unknown."""

    problem_id: str
    difficulty: str | None
    prompt: str
    samples: Mapping[str, Sample]
    grades: Mapping[str, Grade]


@dataclass(frozen=True)
class Findings:
    """Everything the page and the table show. `arms` has each arm's report.json, `steps` one record a training step."""

    arms: Mapping[str, Mapping[str, Any]]
    comparison: Mapping[str, Any]
    manifest: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    pairs: Sequence[Pair]

    def summary(self, stage: str) -> Mapping[str, Any]:
        """What a stage counted; empty where it has not run."""
        found: Mapping[str, Any] = self.manifest.get("stages", {}).get(stage, {}).get("summary", {})
        return found

    @property
    def ks(self) -> list[str]:
        """The k of pass@k that both arms and their comparison have, smallest first, as keys."""
        known = self.comparison["pass_at_k"]
        return sorted((k for k in known if all(k in arm["pass_at_k"] for arm in self.arms.values())), key=int)

    @property
    def tiers(self) -> list[str]:
        """The difficulties of the set, easiest first."""
        found = {tier for arm in self.arms.values() for tier in arm["by_difficulty"]}
        return [tier for tier in TIERS if tier in found] + sorted(found - set(TIERS))

    @property
    def same_decoding(self) -> bool:
        """Do both arms have the same temperature, top-k, top-p and token cap?"""
        return bool(self.arms["base"]["settings"] == self.arms["tuned"]["settings"])


def read_numbers(run: RunFolder) -> Findings:
    """The numbers alone, without steps and samples. Raises UserError where evaluating is not done or a file is bad."""
    run.require("evaluate")
    arms = {name: _read_json(run.arm(name).report, run) for name in ARMS}
    comparison = _read_json(run.comparison, run)
    return Findings(arms, comparison, run.manifest(), [], [])


def read_findings(run: RunFolder) -> Findings:
    """The numbers, the training steps in order, and `report.pairs` pairs of samples."""
    numbers = read_numbers(run)
    steps = sorted(read_records(run.metrics), key=lambda step: int(step["step"])) if run.metrics.is_file() else []
    pairs = read_pairs(run, numbers.arms["base"]["per_problem"], run.recipe.report.pairs)
    return Findings(numbers.arms, numbers.comparison, numbers.manifest, steps, pairs)


def _read_json(path: Path, run: RunFolder) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read ({error}).", where=str(path), next_step=f"Evaluate again in a copy of {run.path}."
        ) from error
    return dict(value)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """`wanted` indices below `count` at even distances, each in the middle of its part; all of them if fewer."""
    wanted = min(count, wanted)
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def read_pairs(run: RunFolder, problems: Sequence[Mapping[str, Any]], wanted: int) -> list[Pair]:
    """Pairs at even distances through the set: chosen before anyone looks at a verdict, so they flatter no arm."""
    chosen = [problems[index] for index in evenly_spaced(len(problems), wanted)]
    ids = {problem["problem_id"] for problem in chosen}
    read = {name: _first_samples(run.arm(name), ids) for name in ARMS}
    decode = _prompt_decoder(run)
    pairs = []
    for problem in chosen:
        name = problem["problem_id"]
        if all(name in read[arm] for arm in ARMS):
            samples = {arm: read[arm][name][0] for arm in ARMS}
            grades = {arm: read[arm][name][1] for arm in ARMS}
            prompt = decode(samples["base"].prompt_ids)
            pairs.append(Pair(name, problem["difficulty"], prompt, samples, grades))
    return pairs


def _first_samples(arm: ArmFolder, ids: set[str]) -> dict[str, tuple[Sample, Grade]]:
    """Sample 0 of each of these problems with its grade."""
    if not ids:
        return {}
    wanted = [r for r in read_records(arm.grades) if r["problem_id"] in ids and r["index"] == 0]
    grades = {record["problem_id"]: grade_from_json(record) for record in wanted}
    return {
        record["problem_id"]: (sample_from_json(record), grades[record["problem_id"]])
        for record in read_records(arm.samples)
        if record["index"] == 0 and record["problem_id"] in grades
    }


def _prompt_decoder(run: RunFolder) -> Callable[[Sequence[int]], str]:
    """Token ids → text by the merged model's tokenizer, or → "" where there is none to read."""
    if not (run.merged / "tokenizer.json").is_file():
        return lambda ids: ""
    from ssd_lite.engines.tokenizer import ChatTokenizer

    try:
        return ChatTokenizer.load(run.merged).decode
    except UserError:  # a report may be written where the tokenizer's library is not installed
        return lambda ids: ""
