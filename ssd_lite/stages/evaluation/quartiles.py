"""Base against tuned by quartile of the base's pass rate: did it get better on what was hard, or on what was easy?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ssd_lite.grading.statistics import paired_bootstrap, quartiles
from ssd_lite.records import Grade

FEWEST_PROBLEMS = 8


def by_quartile(base: Iterable[Grade], tuned: Iterable[Grade], seed: int) -> list[dict[str, Any]]:
    """For each quartile of problems: `quartile`, `count`, mean pass rates `base` and `tuned`, `difference`.

    The base's samples of even index choose the quartile, those of odd index are the base's score in it: with the same
    samples for both, the hardest quartile would hold the base's bad luck, and any second look would seem a gain.
    Empty with fewer than two samples a problem or fewer than 8 problems.
    """
    first, second = _rates(base, 0), _rates(base, 1)
    after = _rates(tuned, None)
    known = [name for name in first if name in second and name in after]
    if len(known) < FEWEST_PROBLEMS or len(known) < len(first):
        return []
    rows = []
    for name, ids in quartiles(first).items():
        a, b = [second[i] for i in ids], [after[i] for i in ids]
        means = {"base": sum(a) / len(a), "tuned": sum(b) / len(b)}
        rows.append({"quartile": name, "count": len(ids), **means, "difference": asdict(paired_bootstrap(a, b, seed))})
    return rows


def _rates(grades: Iterable[Grade], parity: int | None) -> dict[str, float]:
    """Share of passes of each problem, among its samples of one parity of the index, or among all."""
    seen: dict[str, list[bool]] = {}
    for grade in sorted(grades, key=lambda grade: (grade.problem_id, grade.index)):
        if parity is None or grade.index % 2 == parity:
            seen.setdefault(grade.problem_id, []).append(grade.passed)
    return {name: sum(passes) / len(passes) for name, passes in seen.items()}
