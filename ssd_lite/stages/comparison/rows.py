"""The rows of a comparison's table: arms with their seeds taken together, and each against every control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ssd_lite.grading.statistics import Interval, nested_bootstrap, smallest_difference, smallest_of_interval
from ssd_lite.recipe_section import Decoding
from ssd_lite.stages.comparison.plan import BASE
from ssd_lite.stages.evaluation.arm_report import pass_rates

Reports = Sequence[Mapping[str, Any]]
# Roles of a decoding; a row is a model under a role.
MATCHED, TRAINING, BEST = "matched", "training", "best"
CONTROLS = ((BASE, MATCHED), (BASE, TRAINING), (BASE, BEST), ("null_arm", MATCHED))
_NAMES = {
    BASE: "base",
    "ssd": "SSD",
    "soft": "soft SSD",
    "null_arm": "null-SSD",
    "rft": "RFT",
    "distill": "distillation",
    "grpo": "GRPO",
}
_ROLES = {MATCHED: "same decoding", TRAINING: "training decoding", BEST: "best of the grid"}


def name_of(model: str) -> str:
    """A model's name for people; variants have the one the recipe gives."""
    return _NAMES.get(model, model)


@dataclass(frozen=True)
class Row:
    """A model under a role of decoding; `reports` are the arms of its seeds, one for the base."""

    model: str
    role: str
    decoding: Decoding
    reports: Reports

    @property
    def key(self) -> str:
        return f"{self.model}@{self.role}"

    @property
    def label(self) -> str:
        return f"{name_of(self.model)}, {_ROLES[self.role]}"

    @property
    def ks(self) -> list[int]:
        return [int(k) for k in self.reports[0]["pass_at_k"]]

    def rates(self, k: int) -> list[list[float]]:
        """pass@k [seeds, problems]."""
        return [pass_rates(report["per_problem"], k) for report in self.reports]


def numbers(row: Row, controls: Sequence[Row], cost: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the table says of a row: pass@k with interval, paired differences against each control, rates, cost.

    `cost` is what `comparison_cost.cost_of` counts: tokens, seconds, and the rows and steps of each seed.
    """
    reports = row.reports
    return {
        "key": row.key,
        "label": row.label,
        "model": row.model,
        "role": row.role,
        "decoding": row.decoding.model_dump(),
        "seeds": len(reports),
        "pass_at_k": {str(k): asdict(nested_bootstrap(row.rates(k), seed)) for k in row.ks},
        "by_seed": {str(k): [report["pass_at_k"][str(k)]["mean"] for report in reports] for k in row.ks},
        "differences": {c.key: differences(row, c, seed) for c in controls if c.key != row.key},
        **{name: _mean(report[name] for report in reports) for name in _RATES},
        "tokens_evaluated": sum(report["tokens"] for report in reports),
        **cost,
    }


_RATES = ("no_code_rate", "cap_rate", "mean_tokens", "hedging_per_1000_words")


def _mean(values: Any) -> float:
    found = list(values)
    return float(sum(found) / len(found))


def differences(row: Row, control: Row, seed: int) -> dict[str, Any]:
    """Paired differences row - control in pass@k, over problems and seeds, and the smallest the set could show.

    Where both have the same number of seeds, seed i is paired with seed i; else each is set against the control's mean.
    """
    found = {}
    for k in row.ks:
        mine, theirs = row.rates(k), control.rates(k)
        if [r["problem_id"] for r in row.reports[0]["per_problem"]] != [
            r["problem_id"] for r in control.reports[0]["per_problem"]
        ]:
            raise ValueError("two arms are compared over the same problems in the same order")
        if len(mine) != len(theirs):
            theirs = [_column_means(theirs)] * len(mine)
        gaps = [[a - b for a, b in zip(one, two, strict=True)] for one, two in zip(mine, theirs, strict=True)]
        interval = nested_bootstrap(gaps, seed)
        found[str(k)] = {**asdict(interval), "smallest": _smallest(mine, theirs, (row, control), interval, k)}
    return found


def _column_means(rates: Sequence[Sequence[float]]) -> list[float]:
    return [_mean(column) for column in zip(*rates, strict=True)]


def _smallest(
    mine: list[list[float]], theirs: list[list[float]], rows: tuple[Row, Row], interval: Interval, k: int
) -> float | None:
    """The difference that would be claimed in four of five such comparisons.

    The largest of three: from the spread that was seen, from that of independent samples, as in arm_report.power, and
    from the width of `interval`, by which claims are judged and which is wider than the spread where there are seeds.
    """
    a, b = _column_means(theirs), _column_means(mine)
    samples = 2 / sum(1 / (row.reports[0]["n"] * len(row.reports)) for row in rows)
    seen, independent = smallest_difference(a, b), smallest_difference(a, n=samples, k=k)
    if seen is None or independent is None:
        return None
    return max(seen, independent, smallest_of_interval(interval))


def best_decoding(tried: Mapping[Decoding, Reports]) -> Decoding:
    """The decoding with the highest mean pass@1 on the dev split, over all seeds; ties go to the first tried."""
    return max(tried, key=lambda decoding: _mean(report["pass_at_k"]["1"]["mean"] for report in tried[decoding]))
