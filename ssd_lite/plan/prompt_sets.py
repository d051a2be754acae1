"""How many prompts the named problem sets have, and how long they are; what was counted and what is guessed."""

from __future__ import annotations

from ssd_lite.plan.work import Prompts

# Name → (count, mean tokens, longest in tokens). Counts: the sets' papers and docs/problems.md; 10,167 for rstar-coder
# is that of arXiv 2604.01193. Lengths of starter and humaneval: rendered and counted with the packaged model's template
# and tokenizer. The others are guesses, chat template included.
_KNOWN: dict[str, tuple[int, int, int]] = {
    "starter:train": (177, 82, 124),
    "starter:evaluate": (96, 87, 165),
    "humaneval": (164, 192, 448),
    "humaneval+": (164, 192, 448),
    "mbpp:train": (374, 120, 600),
    "mbpp:test": (500, 120, 600),
    "mbpp": (500, 120, 600),
    "livecodebench": (175, 550, 1600),
    "rstar-coder": (10_167, 500, 2048),
}
_UNKNOWN = (1000, 500, 1500)
_COUNTED = ("starter", "humaneval", "humaneval+")


def prompts_of(name: str, role: str, limit: int | None, lines: int | None = None) -> Prompts:
    """The prompts of a set; `role` is "train" or "evaluate", `lines` the problems counted in a local file."""
    key = f"starter:{role}" if name == "starter" else name
    known = _KNOWN.get(key) or _KNOWN.get(key.split(":")[0])
    count, mean, longest = known or _UNKNOWN
    notes = []
    if key.split(":")[0] not in _COUNTED:
        notes.append(f"prompts of {name} guessed to have {mean} tokens in the mean, {longest} at most")
    if lines is not None:
        count = lines
    elif known is None:
        notes.append(f"number of prompts in {name} guessed: {count}")
    if limit is not None and limit < count:
        count = limit
    return Prompts(count, mean, longest, "; ".join(notes))
