"""A plan as one JSON object and as lines for people."""

from __future__ import annotations

from typing import Any

from ssd_lite.plan.advice import with_changes
from ssd_lite.plan.estimate import StagePlan, gib
from ssd_lite.plan.work import Range
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.stages.plan import WORDS, Answered

# Where a word on room or on time is due: share of the card, seconds, share of the time.
TIGHT, LONG_S, MOST = 0.9, 24 * 3600, 0.7


def as_json(answered: Answered, measured: dict[str, Any] | None = None) -> dict[str, Any]:
    """Bytes, hours [low, high], money [low, high] or null; `changes` null where no change of keys makes it fit."""
    plan = answered.plan
    return {
        "recipe": plan.recipe.name,
        "model": plan.recipe.model.name,
        "gpu": plan.machine.key,
        "basis": WORDS,
        "fits": plan.fits,
        "reasons": [why for _, why in plan.reasons],
        "changes": answered.changes,
        "room": answered.room,
        "stages": {name: _stage(stage, answered.price) for name, stage in plan.stages.items()},
        "gpu_peak_bytes": plan.gpu_peak_bytes,
        "host_peak_bytes": plan.host_peak_bytes,
        "disk_peak_bytes": plan.disk_peak_bytes,
        "disk": [
            {"stage": entry.stage, "what": entry.what, "bytes": entry.bytes, "passing_bytes": entry.passing}
            for entry in plan.disk
        ],
        "hours": _hours(plan.seconds),
        "cost": _cost(plan.seconds, answered.price),
        "price_per_hour": answered.price,
        "cards": {
            key: {"fits": other.fits, "gpu_peak_bytes": other.gpu_peak_bytes, "hours": _hours(other.seconds)}
            for key, other in answered.others.items()
        },
        "notes": list(answered.notes),
        **({"measured": measured} if measured is not None else {}),
    }


def _stage(stage: StagePlan, price: float | None) -> dict[str, Any]:
    return {
        "gpu_peak_bytes": stage.gpu_peak_bytes,
        "host_peak_bytes": stage.host_peak_bytes,
        "terms": stage.terms,
        "tokens": None if stage.tokens is None else [round(amount) for amount in stage.tokens],
        "hours": _hours(stage.seconds),
        "cost": _cost(stage.seconds, price),
    }


def _hours(seconds: Range) -> list[float]:
    return [float(f"{value / 3600:.3g}") for value in seconds]


def _cost(seconds: Range, price: float | None) -> list[float] | None:
    return None if price is None else [round(value / 3600 * price, 2) for value in seconds]


def as_text(answered: Answered, measured: dict[str, Any] | None = None) -> str:
    """A table of the stages, the terms of the two largest, disk, verdict, changes, notes."""
    plan = answered.plan
    machine = plan.machine
    memory = f" ({gib(machine.memory_bytes)})" if machine.on_card else ""
    lines = [f"{plan.recipe.name} on {machine.name}{memory}, {WORDS}", "", *_table(answered), ""]
    for name in ("sample", "train", "evaluate"):
        terms = ", ".join(f"{term} {gib(size)}" for term, size in plan.stages[name].terms.items())
        lines.append(f"{name + ':':10}{terms}")
    parts = ", ".join(f"{entry.what} {gib(entry.bytes)}" for entry in plan.disk if entry.bytes > 2**26)
    lines += ["", f"disk: {gib(plan.disk_peak_bytes)} at most; {parts}"]
    lines += [_measured_line(stage, found) for stage, found in (measured or {}).items()]
    lines += ["", *_verdict(answered)]
    lines += [f"Note: {note}" for note in answered.notes]
    return "\n".join(lines)


def _table(answered: Answered) -> list[str]:
    plan, price = answered.plan, answered.price
    head = f"{'stage':10}{'card':>11}{'host':>11}{'tokens':>18}{'time':>19}" + (f"{'cost':>18}" if price else "")
    rows = [head]
    for name, stage in plan.stages.items():
        card = gib(stage.gpu_peak_bytes) if stage.gpu_peak_bytes else "-"
        tokens = "-" if stage.tokens is None else "{} - {}".format(*map(_count, stage.tokens))
        rows.append(f"{name:10}{card:>11}{gib(stage.host_peak_bytes):>11}{tokens:>18}" + _times(stage.seconds, price))
    card = gib(plan.gpu_peak_bytes) if plan.gpu_peak_bytes else "-"
    rows.append(f"{'in all':10}{card:>11}{gib(plan.host_peak_bytes):>11}{'':>18}" + _times(plan.seconds, price))
    return rows


def _times(seconds: Range, price: float | None) -> str:
    low, high = map(time_words, seconds)
    text = f"{f'{low} - {high}':>19}"
    money = _cost(seconds, price)
    return text if money is None else text + f"{f'{money[0]:.2f} - {money[1]:.2f}':>18}"


def time_words(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`, `215 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _count(tokens: float) -> str:
    if tokens < 10_000:
        return f"{tokens:.0f}"
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k"


def _measured_line(stage: str, found: dict[str, Any]) -> str:
    if found["done"]:
        return f"measured: {stage} took {time_words(3600 * found['hours'])}"
    left, whole = (time_words(3600 * found[key]) for key in ("hours_left", "hours"))
    return (
        f"measured: {stage} is at step {found['steps']} of {found['steps_in_all']}, {found['seconds_per_step']:.1f} s "
        f"each, {found['tokens_per_s']:.0f} tok/s: {left} left, {whole} in all"
    )


def _verdict(answered: Answered) -> list[str]:
    plan = answered.plan
    cards = [key for key, other in answered.others.items() if other.fits]
    everywhere = f"Cards on which it fits: {', '.join(cards) or 'none of those known'}."
    if plan.fits:
        return [*_fitting(answered), everywhere]
    lines = [f"It does not fit: {why}." for _, why in plan.reasons]
    if answered.changes is None:
        return [*lines, "No change of its keys makes it fit on this one.", everywhere]
    return [*lines, f"It fits with: {_settings(answered.changes)}", everywhere]


def _fitting(answered: Answered) -> list[str]:
    plan = answered.plan
    lines = ["It fits."]
    if plan.machine.on_card and plan.gpu_peak_bytes > TIGHT * plan.machine.memory_bytes:
        lines = ["It fits, with less than a tenth of the card to spare: it may not in truth."]
    if answered.room:
        lines.append(f"There is room for larger batches, which take less time: {_settings(answered.room)}")
    decoding = sum(plan.stages[stage].seconds[1] for stage in ("sample", "evaluate"))
    if plan.seconds[1] > LONG_S and decoding > MOST * plan.seconds[1]:
        engines = (plan.recipe.sample.engine, plan.recipe.evaluate.engine)
        served = "" if "server" in engines or not plan.machine.on_card else ", or engine server (docs/server.md)"
        lines.append(
            "Most of the time goes into sampling: a problems.train_limit, a smaller evaluate.n, lower caps or larger "
            f"batches shorten it{served}."
        )
    return lines


def _settings(changes: dict[str, Any]) -> str:
    return " ".join(f"--set {key}={_yaml(value)}" for key, value in changes.items())


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def fitting_recipe(answered: Answered) -> str | None:
    """The recipe that fits, as YAML; None where there is none."""
    if answered.changes is None:
        return None
    return dump_recipe(with_changes(answered.plan.recipe, answered.changes))
