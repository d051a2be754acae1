"""What is measured of each round, and when to stop: a fall of pass@k or of diversity beyond its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ssd_lite.grading.statistics import bootstrap, paired_bootstrap
from ssd_lite.records import Sample
from ssd_lite.stages.diversity import distinct, self_bleu
from ssd_lite.stages.evaluation.arm_report import pass_rates

Numbers = dict[str, Any]
_DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")


def numbers(name: str, report: Mapping[str, Any], samples: Sequence[Sample], seed: int) -> Numbers:
    """The figures of one round from its arm's report and samples.

    `pass_at_k` as reported; `distinct_1..3` and `self_bleu`: mean over problems with interval; `per_problem` values;
    `entropy`, `survivors` (means over samples of the laws drawn from), `mean_tokens`, `no_code_rate`, `cap_rate`.
    """
    texts: dict[str, list[str]] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        texts.setdefault(sample.problem_id, []).append(sample.completion)
    per_problem = {
        "distinct_1": {name: distinct(found, 1) for name, found in texts.items()},
        "distinct_2": {name: distinct(found, 2) for name, found in texts.items()},
        "distinct_3": {name: distinct(found, 3) for name, found in texts.items()},
        "self_bleu": {name: self_bleu(found) for name, found in texts.items()},
    }
    entropies = [sample.entropy_nats for sample in samples if sample.entropy_nats is not None]
    counted = [sample.survivors for sample in samples if sample.survivors is not None]
    return {
        "round": name,
        "pass_at_k": report["pass_at_k"],
        "rates": {k: pass_rates(report["per_problem"], int(k)) for k in report["pass_at_k"]},
        **{key: _mean_interval(values, seed) for key, values in per_problem.items()},
        "per_problem": per_problem,
        "entropy": sum(entropies) / len(entropies) if entropies else None,
        "survivors": sum(counted) / len(counted) if counted else None,
        **{key: report[key] for key in ("mean_tokens", "no_code_rate", "cap_rate")},
    }


def _mean_interval(values: Mapping[str, float | None], seed: int) -> dict[str, float] | None:
    known = [value for value in values.values() if value is not None]
    return asdict(bootstrap(known, seed)) if known else None


def changes(before: Numbers, after: Numbers, seed: int) -> dict[str, Any]:
    """Paired differences after - before over the problems: pass@(smallest k), distinct_2 and self_bleu."""
    k = min(before["rates"], key=int)
    found = {f"pass@{k}": asdict(paired_bootstrap(before["rates"][k], after["rates"][k], seed))}
    for key in ("distinct_2", "self_bleu"):
        a, b = before["per_problem"][key], after["per_problem"][key]
        both = [name for name in a if a[name] is not None and b.get(name) is not None]
        if both:
            found[key] = asdict(paired_bootstrap([a[name] for name in both], [b[name] for name in both], seed))
    return found


def reason_to_stop(change: Mapping[str, Mapping[str, float]]) -> str | None:
    """Why no further round should follow, or None: the whole interval of a change lies on the bad side of 0."""
    for key, difference in change.items():
        falls = key != "self_bleu"
        if (difference["high"] < 0) if falls else (difference["low"] > 0):
            verb = "fell" if falls else "rose"
            return (
                f"{key} {verb} by {abs(difference['mean']):.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
            )
    return None


def best_round(rounds: Sequence[Numbers]) -> str:
    """The round with the highest pass@(smallest k); of equals the earlier one."""
    k = min(rounds[0]["rates"], key=int)
    return str(max(rounds, key=lambda one: one["pass_at_k"][k]["mean"])["round"])


def shown(one: Numbers) -> Numbers:
    """The figures without the values of single problems."""
    return {key: value for key, value in one.items() if key not in ("per_problem", "rates")}
