"""What a diagnosis predicts and suggests, each with its reasons, and what it cannot know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

NO_TAIL, SMALL_TAIL = 0.001, 0.01
"""Mean mass outside the support at the law's temperature: below the first nothing, below the second little."""
MANY_FORKS_CUT = 0.1
"""Share of the forks that lose a token of 10 % or more, above which the law removes choice and not only tail."""
NOISE_ENTROPY = 1.25
"""Own entropy at T = 1 as a multiple of the reference's from which the samples count as noise."""
NOISE_CAP = 0.15
"""Share of completions cut off, beyond the reference's, from which the samples count as noise."""
ENOUGH_SAMPLES = 8
"""Fewer completions in the comparison say nothing about noise."""
T_EFF = 1.2
"""T_train * T_eval near which the untruncated runs of arXiv 2604.01193 were best."""
PRESET_T_EFF, PRESET_T_EVAL = (0.56, 1.76), (0.7, 1.1)
"""Smallest and largest T_train * T_eval, and T_eval, of that paper's six presets, truncated ones included."""

Report = Mapping[str, Any]


def advise(report: Report) -> dict[str, Any]:
    """Verdict on the truncation, suggested T_train and T_eval (None where nothing can be said), reasons, limits."""
    noise, noise_words = judge_noise(report)
    t_train, reasons = _t_train(report, noise)
    advice: dict[str, Any] = {
        "truncation": truncation(report),
        "noise": noise,
        "noise_words": noise_words,
        "t_train": t_train,
        "t_train_words": reasons,
        **_t_eval(t_train),
    }
    matched = matched_temperature(report)
    return advice | ({"matched": matched} if matched else {})


def truncation(report: Report) -> dict[str, Any]:
    """Whether the truncation has anything to remove from the base's law, in one word and in sentences."""
    law, base = report["law"], report["models"]["base"]
    off = law["top_k"] == 0 and law["top_p"] == 1.0 and law["min_p"] == 0.0
    tail = base["tail"]
    if off:
        only = "This law truncates nothing: training on its samples ideally only changes the temperature, which "
        return {"verdict": "nothing", "words": [only + "decoding can do without training."]}
    verdict = "nothing" if tail < NO_TAIL else "little" if tail < SMALL_TAIL else "something"
    heads = {
        "nothing": "The truncation has nothing to remove",
        "little": "The truncation has little to remove",
        "something": "The truncation has something to remove",
    }
    words = [
        f"{heads[verdict]}: of what plain sampling at T {law['temperature']:g} would draw, {100 * tail:.2g} % lies "
        f"outside the support; {100 * base['tail_positions']:.0f} % of the positions have at least 1 % there.",
        f"Of the model's own mass at T 1, {100 * base['tail_at_1']:.2g} % lies outside: that is what the first term of "
        f"the loss takes away, {base['minus_log_kept']:.2g} nats a token before training.",
        f"At {_share(base['locks_closed'])} of the locks only the first token survives; at {_share(base['forks_cut'])} "
        "of the forks a token of 10 % or more is cut (there the samples hold less choice than the model has).",
        "That there is something to remove does not say that removing it raises a score; only an evaluation does.",
    ]
    return {"verdict": verdict, "words": words}


def judge_noise(report: Report) -> tuple[bool | None, str]:
    """Whether the own samples look like noise beside the reference, None where that cannot be said; and why.

    A limit counts as passed where the difference is also twice its standard error.
    """
    found = report["generations"]
    own, reference = found["paired"], found["reference"]
    if own is None or reference is None or min(own["samples"], reference["samples"]) < ENOUGH_SAMPLES:
        return None, f"Fewer than {ENOUGH_SAMPLES} completions beside the reference: nothing is said about noise."
    ratio = own["entropy"] / max(reference["entropy"], 1e-9)
    more_cut = own["cap_rate"] - reference["cap_rate"]
    wider = _passed(ratio >= NOISE_ENTROPY, own["entropy"] - reference["entropy"], own, reference, _entropy_error)
    longer = _passed(more_cut >= NOISE_CAP, more_cut, own, reference, _cap_error)
    noise = True if True in (wider, longer) else None if None in (wider, longer) else False
    words = (
        f"On {own['samples']} own completions at T {report['law']['temperature']:g} the model's entropy at T 1 is "
        f"{own['entropy']:.2f} nats, {ratio:.2f} times that on its {reference['samples']} answers to these problems at "
        f"T {reference['temperature']:g}; {100 * own['cap_rate']:.0f} % are cut off, there "
        f"{100 * reference['cap_rate']:.0f} %. Limits: {NOISE_ENTROPY:g} times, {100 * NOISE_CAP:.0f} points more. "
    )
    verdicts = {
        True: "That looks like noise: of its own text the model is clearly less sure, or it does not come to an end.",
        False: "That does not look like noise.",
        None: "A limit is passed, but by less than twice the standard error: take more samples or a higher cap.",
    }
    return noise, words + verdicts[noise]


def _passed(
    limit: bool, difference: float, own: Report, reference: Report, error: Callable[[Report], float]
) -> bool | None:
    """False within the limit, True clearly beyond it, None where chance may have passed it."""
    if not limit:
        return False
    return True if difference >= 2 * math.hypot(error(own), error(reference)) else None


def _entropy_error(one: Report) -> float:
    return float(one["entropy_error"])


def _cap_error(one: Report) -> float:
    return math.sqrt(one["cap_rate"] * (1 - one["cap_rate"]) / one["samples"])


def _t_train(report: Report, noise: bool | None) -> tuple[float | None, str]:
    temperature, base = report["law"]["temperature"], report["models"]["base"]
    if noise is None:
        return None, "None is suggested: whether the model writes sense at this temperature could not be seen."
    if noise:
        words = f"Lower than {temperature:g}: at this temperature the samples look like noise. Which one was not seen; "
        return None, words + "run this again with a lower --temperature."
    if base["tail"] < SMALL_TAIL:
        return None, f"Higher than {temperature:g}: hardly anything is truncated here." + _hint(report)
    if (base["forks_cut"] or 0.0) > MANY_FORKS_CUT:
        words = (
            f"Higher than {temperature:g}: the samples would also teach less choice, since a token of 10 % or more is "
        )
        return None, words + f"cut at {_share(base['forks_cut'])} of the forks." + _hint(report)
    words = (
        f"{temperature:g} can be used: the truncation removes tail and hardly any choice, and the samples do not look "
    )
    return temperature, words + "like noise. Whether another temperature is better was not measured."


def _hint(report: Report) -> str:
    """The lowest temperature of the curve above the law's own at which neither is so, on the same texts."""
    for row in report["models"]["base"]["curves"]["train"]:
        fits = row["tail"] >= SMALL_TAIL and (row["forks_cut"] or 0.0) <= MANY_FORKS_CUT
        if row["temperature"] > report["law"]["temperature"] and fits:
            words = (
                f" On these texts that ends at T {row['temperature']:g}; whether the model writes sense there was not "
            )
            return words + "seen: run this again with that --temperature."
    return ""


def _t_eval(t_train: float | None) -> dict[str, Any]:
    if t_train is None:
        return {"t_eval": None, "t_eval_words": "None without a T_train."}
    plain, (low, high) = T_EFF / t_train, PRESET_T_EVAL
    start = min(high, max(low, plain))
    outside = "" if start == plain else f"; that is outside the presets' range, whose nearest end is {start:g}"
    words = (
        "A place to start. In arXiv 2604.01193 the runs without truncation were best near T_train x T_eval = "
        f"{T_EFF:g}, which gives {plain:.2f}{outside}. Truncated runs follow it loosely: that paper's six presets have "
        f"products from {PRESET_T_EFF[0]:g} to {PRESET_T_EFF[1]:g}, and T_eval from {low:g} to {high:g}. Choose T_eval "
        "on problems that are not reported."
    )
    return {"t_eval": round(start, 2), "t_eval_words": words}


def matched_temperature(report: Report) -> dict[str, Any] | None:
    """The temperature at which the tuned model's law is as wide as the base's at its own decoding temperature.

    Both by mean entropy of the law under the tuned model's truncation on the same texts, linear between the points of
    the curve; None without a tuned model or outside the curve.
    """
    if "tuned" not in report["models"] or "evaluate" not in report["models"]["tuned"]["curves"]:
        return None
    base, tuned = (
        [(row["temperature"], row["law_entropy"]) for row in report["models"][name]["curves"]["evaluate"]]
        for name in ("base", "tuned")
    )
    at = report["base_temperature"]
    wanted = _interpolate(base, at)
    found = _interpolate([(entropy, t) for t, entropy in tuned], wanted) if wanted is not None else None
    if wanted is None or found is None:
        return None
    words = (
        f"On these texts the tuned model at T {found:.2f} has the entropy of the base at T {at:g} ({wanted:.3f} nats): "
        "decoded there, a difference in score is not one of width alone."
    )
    return {"base_temperature": at, "tuned_temperature": round(found, 3), "law_entropy": wanted, "words": words}


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.0f} %"


def _interpolate(points: list[tuple[float, float]], x: float) -> float | None:
    """y at x on the line through points of rising x; None outside."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None
