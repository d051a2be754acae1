"""The words and numbers of a report: percent, durations, the figures of the arms, what a verdict leaves open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ssd_lite.stages.cut_off import MANY_CUT_OFF
from ssd_lite.stages.report_findings import ARMS, Findings

# Rates that stand as a share of samples in report.json, with the words for people.
RATES = {
    "no_code_rate": "No code found",
    "cap_rate": "Cut off at the cap",
    "unclosed_rate": "Code block left open",
}
MINUS = "−"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a real minus, and no sign at all where it rounds to zero."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", MINUS)


def percent(share: float) -> str:
    """A share in [0, 1] in percent."""
    return f"{100 * share:.1f} %"


def bounds(interval: Mapping[str, float], show: Callable[[float], str] = "{:.1f}".format) -> str:
    """The two ends of an interval given as shares, in percent."""
    return f"[{show(100 * interval['low'])}, {show(100 * interval['high'])}]"


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    mib = count_bytes / (1 << 20)
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def law(settings: Mapping[str, Any]) -> str:
    """A decoding in one line; 0 and 1.0 are off."""
    top_p = "off" if settings["top_p"] == 1 else f"{settings['top_p']:g}"
    min_p = f", min-p {settings['min_p']:g}" if settings.get("min_p") else ""
    return f"T {settings['temperature']:g}, top-k {settings['top_k'] or 'off'}, top-p {top_p}{min_p}"


def figure_rows(findings: Findings) -> list[tuple[str, list[str], str]]:
    """The table base against tuned: name, the cell of each arm, the difference tuned - base."""
    arms = findings.arms
    rows = []
    for k in findings.ks:
        cells = [f"{percent(arms[a]['pass_at_k'][k]['mean'])} {bounds(arms[a]['pass_at_k'][k])}" for a in ARMS]
        paired = findings.comparison["pass_at_k"][k]
        rows.append((f"pass@{k}", cells, f"{signed(100 * paired['mean'])} {bounds(paired, signed)}"))
    for key, name in RATES.items():
        shares = [arms[arm][key] for arm in ARMS]
        rows.append((name, [percent(share) for share in shares], signed(100 * (shares[1] - shares[0]))))
    lengths = [arms[arm]["mean_tokens"] for arm in ARMS]
    rows.append(("Mean length in tokens", [f"{x:.1f}" for x in lengths], signed(lengths[1] - lengths[0])))
    hedging = [arms[arm]["hedging_per_1000_words"] for arm in ARMS]
    rows.append(("Hedging words per 1,000", [f"{x:.2f}" for x in hedging], signed(hedging[1] - hedging[0], 2)))
    return rows


def set_line(arm: Mapping[str, Any]) -> str:
    """Set, count, samples a problem and token cap: what every score must be read with."""
    problems = arm["problems"]
    note = f" ({problems['note']})" if problems.get("note") else ""
    cap = arm["settings"]["max_new_tokens"]
    each = "one sample" if arm["n"] == 1 else f"{arm['n']} samples"
    return f"Set {problems['name']}{note}: {problems['count']} problems, {each} each, at most {cap:,} tokens"


def caveats(findings: Findings, *, null_arm: bool) -> list[str]:
    """What the verdict does not show, most important first."""
    base, tuned = (findings.arms[arm] for arm in ARMS)
    first, tiers = findings.ks[0], {arm["grader"]["tier"] for arm in findings.arms.values()}
    lines = [_about_decoding(findings), _about_size(findings, first)]
    only_base, only_tuned = findings.comparison["only_base"], findings.comparison["only_tuned"]
    lines.append(
        f"Solved at least once by one arm only: {only_base} by the base, {only_tuned} by the tuned model "
        f"(exact McNemar p = {findings.comparison['mcnemar_p']:.3g})."
    )
    capped = max(base["cap_rate"], tuned["cap_rate"])
    if capped > MANY_CUT_OFF:
        lines.append(
            f"Up to {percent(capped)} of an arm's completions ran into the token cap, so the cap is part of the "
            "result: raise evaluate.max_new_tokens."
        )
    lines += [line for stage in ("sample", "curate") for line in findings.summary(stage).get("warnings", [])]
    if null_arm:
        lines.append("This run is the null arm: T = 1 without truncation, a training without an expected gradient.")
    else:
        lines.append(
            "No null arm was compared (the same training on samples at T = 1 without truncation), so a change may come "
            "from training as such: `ssd-lite compare` trains one."
        )
    lines.append(_about_other_tasks(findings))
    if "none" in tiers:
        lines.insert(0, "The programs ran without isolation, so a program could have tampered with its verdict.")
    return lines


def _about_other_tasks(findings: Findings) -> str:
    entries = findings.summary("evaluate").get("guard", [])
    if not entries:
        return "One set and one seed of training: other tasks were not measured, and may have got worse."
    names = ", ".join(entry["name"] for entry in entries)
    return f"One seed of training; beside this set only the guard's were measured ({names}): others may have got worse."


def _about_decoding(findings: Findings) -> str:
    base, tuned = (findings.arms[arm]["settings"] for arm in ARMS)
    if findings.same_decoding:
        return (
            f"Both arms were decoded alike ({law(base)}). Another decoding may suit the base better and close the gap."
        )
    if law(base) == law(tuned):
        return (
            f"The arms had different token caps ({base['max_new_tokens']:,} and {tuned['max_new_tokens']:,}): the cap "
            "alone may explain a difference."
        )
    return (
        f"The arms were decoded differently (base {law(base)}; tuned {law(tuned)}): decoding alone may explain a "
        "difference."
    )


def _about_size(findings: Findings, k: str) -> str:
    count = findings.arms["base"]["problems"]["count"]
    smallest = findings.comparison["smallest_difference"].get(k)
    if not smallest:
        return f"{count} problems are too few to say what difference this set could have shown."
    return (
        f"{count} problems: the smallest pass@{k} difference this set could show is about {100 * smallest:.1f} points "
        "(80 % power, 5 % two-sided)."
    )
