"""How many prompts the named problem sets have, and how long they are: counts from docs and papers, lengths guessed."""

from __future__ import annotations

from ssd_lite.plan.work import Prompts

# Name → (count, mean tokens, longest in tokens). Counts: the sets' papers and docs/problems.md; 10,167 for rstar-coder
# is that of arXiv 2604.01193. All lengths are guesses, chat template included.
_KNOWN: dict[str, tuple[int, int, int]] = {
    "starter:train": (177, 90, 160),
    "starter:evaluate": (96, 90, 200),
    "humaneval": (164, 180, 500),
    "humaneval+": (164, 180, 500),
    "mbpp:train": (374, 120, 600),
    "mbpp:test": (500, 120, 600),
    "mbpp": (500, 120, 600),
    "livecodebench": (175, 550, 1600),
    "rstar-coder": (10_167, 500, 2048),
}
_UNKNOWN = (1000, 500, 1500)


def prompts_of(name: str, role: str, limit: int | None, lines: int | None = None) -> Prompts:
    """The prompts of a set; `role` is "train" or "evaluate", `lines` the problems counted in a local file."""
    key = f"starter:{role}" if name == "starter" else name
    known = _KNOWN.get(key) or _KNOWN.get(key.split(":")[0])
    count, mean, longest = known or _UNKNOWN
    notes = [] if known and lines is None else [f"length of the prompts in {name} guessed: {mean} tokens in the mean"]
    if lines is not None:
        count = lines
    elif known is None:
        notes.append(f"number of prompts in {name} guessed: {count}")
    if limit is not None and limit < count:
        count = limit
    return Prompts(count, mean, longest, "; ".join(notes))
