"""Numbers of one arm and of two arms compared: pass@k with intervals, rates, lengths, the verdict in one sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ssd_lite.grading.extract import Block, extract_program
from ssd_lite.grading.pass_at_k import pass_at_k
from ssd_lite.grading.statistics import bootstrap, groups, mcnemar_exact, paired_bootstrap, smallest_difference
from ssd_lite.records import Grade, Problem, Sample

# arXiv 2603.24472 counts these as signs of hedging; self-distillation was seen to thin them out.
HEDGING = ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check")
MCNEMAR_LEVEL = 0.05
_WORD = re.compile(r"[A-Za-z']+")


def arm_numbers(
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    grades: Sequence[Grade],
    *,
    ks: Sequence[int],
    seed: int,
    block: Block,
) -> dict[str, Any]:
    """The measured part of an arm's report.json."""
    made, passed = Counter(s.problem_id for s in samples), Counter(g.problem_id for g in grades if g.passed)
    rows = [{"problem_id": p.id, "difficulty": p.difficulty, "n": made[p.id], "passed": passed[p.id]} for p in problems]
    tiers = groups({p.id: p.difficulty for p in problems if p.difficulty is not None})
    by_id = {row["problem_id"]: row for row in rows}
    words = [word.lower() for s in samples for word in _WORD.findall(s.completion)]
    counts = Counter(words)
    hedging = {word: counts[word] for word in HEDGING}
    return {
        "pass_at_k": _pass_at_k(rows, ks, seed),
        "by_difficulty": {
            tier: {"count": len(ids), "pass_at_k": _pass_at_k([by_id[i] for i in ids], ks, seed)}
            for tier, ids in tiers.items()
        },
        "verdicts": dict(Counter(g.verdict for g in grades).most_common()),
        "no_code_rate": _share(g.verdict == "no_code" for g in grades),
        "cap_rate": _share(s.finish_reason == "length" for s in samples),
        "no_answer_rate": _share(g.verdict == "no_answer" for g in grades),
        "unclosed_rate": _share(_fence(s, block) == "unclosed" for s in samples),
        "mean_tokens": sum(len(s.completion_ids) for s in samples) / len(samples),
        "hedging_per_1000_words": 1000 * sum(hedging.values()) / max(1, len(words)),
        "hedging_words": hedging,
        "words": len(words),
        "samples": len(samples),
        "lengths": [len(s.completion_ids) for s in samples],
        "entropies": [s.entropy_nats for s in samples if s.entropy_nats is not None],
        "per_problem": rows,
    }


def _fence(sample: Sample, block: Block) -> str:
    return extract_program(sample.completion, block=block, opened_thinking=sample.opened_thinking).fence


def _pass_at_k(rows: Sequence[Mapping[str, Any]], ks: Sequence[int], seed: int) -> dict[str, Any]:
    return {str(k): asdict(bootstrap(pass_rates(rows, k), seed)) for k in ks}


def pass_rates(rows: Sequence[Mapping[str, Any]], k: int) -> list[float]:
    """pass@k of each problem, in order, from the rows of a report's `per_problem`."""
    return [pass_at_k(row["n"], row["passed"], k) for row in rows]


def _share(flags: Iterable[bool]) -> float:
    seen = list(flags)
    return sum(seen) / len(seen)


def compare(base: Mapping[str, Any], tuned: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The paired comparison of two arms over the same problems, with its verdict.

    Gain or loss is claimed only where the 95 % interval of the paired difference in pass@(smallest k) leaves out zero.
    Where McNemar's exact test at 5 % says otherwise of one sample a problem, the sentence says that too. A
    `smallest_difference` is None where the set is too small to name one.
    """
    ks = [k for k in base["k"] if k in tuned["k"]]
    a, b = base["per_problem"], tuned["per_problem"]
    if [row["problem_id"] for row in a] != [row["problem_id"] for row in b]:
        raise ValueError("two arms are compared over the same problems in the same order")
    differences = {str(k): asdict(paired_bootstrap(pass_rates(a, k), pass_rates(b, k), seed)) for k in ks}
    n = min(base["n"], tuned["n"])
    shown = {str(k): power(pass_rates(a, k), pass_rates(b, k), n, k) for k in ks}
    only_base = sum(x["passed"] > 0 and y["passed"] == 0 for x, y in zip(a, b, strict=True))
    only_tuned = sum(y["passed"] > 0 and x["passed"] == 0 for x, y in zip(a, b, strict=True))
    verdict, sentence = _verdict(min(ks), differences[str(min(ks))], shown[str(min(ks))], len(a))
    sentence += _other_test(verdict, only_base, only_tuned, n)
    return {
        "base": base["arm"],
        "tuned": tuned["arm"],
        "pass_at_k": differences,
        "mcnemar_p": mcnemar_exact(only_base, only_tuned),
        "only_base": only_base,
        "only_tuned": only_tuned,
        "smallest_difference": shown,
        "verdict": verdict,
        "sentence": sentence,
    }


def power(a: Sequence[float], b: Sequence[float], n: int, k: int = 1) -> float | None:
    """The smallest difference in pass@k of `n` samples that this set could show, None where it is too small to tell.

    The larger of two estimates: the spread that was seen, and that of two independent arms. Where hardly a problem
    changed, the first alone would claim a power the set does not have.
    """
    seen, independent = smallest_difference(a, b), smallest_difference(a, n=n, k=k)
    return None if seen is None or independent is None else max(seen, independent)


def _other_test(verdict: str, only_base: int, only_tuned: int, n: int) -> str:
    """What McNemar's test says, where it does not agree with the interval that the verdict goes by; else nothing.

    With several samples a problem it is about problems solved at least once, which is another question than pass@1.
    """
    if n > 1:
        return ""
    p = mcnemar_exact(only_base, only_tuned)
    tested = "no difference shown"
    if p <= MCNEMAR_LEVEL:
        tested = "gain" if only_tuned > only_base else "loss"
    if tested == verdict:
        return ""
    counts = f"solved by one arm alone: base {only_base}, tuned {only_tuned}"
    return f" McNemar's exact test does not agree: {tested}, p = {p:.3g} ({counts})."


def _verdict(k: int, difference: Mapping[str, float], power: float | None, problems: int) -> tuple[str, str]:
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    interval = f"[{low:+.1f}, {high:+.1f}]"
    if low > 0:
        return "gain", f"Gain: pass@{k} rose by {mean:.1f} points {interval} over {problems} problems."
    if high < 0:
        return "loss", f"Loss: pass@{k} fell by {-mean:.1f} points {interval} over {problems} problems."
    could = "the set is too small to say what difference it could show"
    if power is not None:
        could = f"the smallest difference this set could show is about {100 * power:.1f}"
    return (
        "no difference shown",
        f"No difference shown: pass@{k} {mean:+.1f} points {interval} over {problems} problems; {could}.",
    )
