"""Completions that ran into the token cap: how many are too many, and what to do about it, in words."""

from __future__ import annotations

MANY_CUT_OFF = 0.05
MANY_DROPPED = 0.25


def cap_warnings(whose: str, cut_off: int, count: int, cap: int, key: str) -> list[str]:
    """A warning where more than 5 % of `count` completions were cut off at `cap` tokens; `key` sets the cap."""
    if cut_off <= MANY_CUT_OFF * count:
        return []
    return [
        f"{cut_off:,} of {count:,} {whose} ({100 * cut_off / count:.1f} %) were cut off at {cap:,} tokens: "
        f"raise {key}, or the cap is part of the result."
    ]


def arm_warnings(name: str, cap_rate: float, count: int, cap: int, key: str) -> list[str]:
    """The same for an arm, whose report holds the share."""
    return cap_warnings(f"completions of {name}", round(cap_rate * count), count, cap, key)


def dropped_warnings(cut_off: int, count: int) -> list[str]:
    """A warning where more than 25 % of the samples were dropped from training because they were cut off."""
    if cut_off <= MANY_DROPPED * count:
        return []
    return [
        f"{cut_off:,} of {count:,} samples ({100 * cut_off / count:.1f} %) were dropped because they were cut off, "
        "and what is left are the short ones. Raise sample.max_new_tokens (and train.max_length with it) in a new run."
    ]
