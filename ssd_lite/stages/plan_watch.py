"""Corrects the plan of a stage that works: its measured pace against what arithmetic said, in one line, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ssd_lite import heartbeat
from ssd_lite.errors import UserError
from ssd_lite.plan.cards import card_called
from ssd_lite.plan.shapes import packaged_shape
from ssd_lite.progress import duration
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.plan import Question
from ssd_lite.stages.plan_run import plan_run

# The first pieces load kernels and tune threads: a pace is believed after so many steps, or this share of the samples,
# and so many seconds.
STEPS, SHARE, SECONDS = 3, 0.02, 20.0


class PlanWatch:
    """Call it now and then while a stage works in another process. It never raises: a plan is advice."""

    def __init__(self, run: RunFolder, stage: str, say: Callable[[str], None]) -> None:
        self._run, self._stage, self._say = run, stage, say
        self._since = time.time()
        # Evaluating has several arms, each with a progress of its own.
        self._said = stage not in ("sample", "train")

    def __call__(self) -> None:
        if self._said:
            return
        seen = heartbeat.read(self._run.path)
        if seen is None or seen.get("stage") != self._stage or not believable(seen):
            return
        if seen["state"] != heartbeat.WORKING or seen["updated_unix"] < self._since:
            return  # news of a process before
        self._said = True
        self._say(line(self._stage, seen, self._planned(seen)))

    def _planned(self, seen: Mapping[str, Any]) -> tuple[float, float] | None:
        """Seconds that the plan gives this stage, low and high; None where none can be made without the Hub."""
        if packaged_shape(self._run.recipe.model.name) is None:
            return None
        card = None
        if seen.get("card"):
            card = card_called(seen["card"], seen["card_total_bytes"])
            if card is None:
                return None
        try:
            answered, _ = plan_run(self._run, Question(gpu=card.key if card else None))
        except (UserError, OSError, KeyError, ValueError, ZeroDivisionError):
            return None
        planned = answered.plan.stages.get(self._stage)
        return None if planned is None else (planned.seconds[0], planned.seconds[1])


def believable(seen: Mapping[str, Any]) -> bool:
    """True once the pace of this process stands on enough pieces and seconds."""
    if seen.get("seconds_left") is None or seen["seconds_here"] < SECONDS:
        return False
    enough = STEPS if seen["unit"] == "steps" else max(STEPS, SHARE * seen["total"])
    return bool(seen["done_here"] >= enough)


def line(stage: str, seen: Mapping[str, Any], planned: tuple[float, float] | None) -> str:
    """`plan corrected: train 12m in all at the measured pace (by arithmetic 2m to 7m), cost 0.14.`"""
    # What an earlier process did counts at the pace of this one.
    whole = seen["seconds_left"] / max(1, seen["total"] - seen["done"]) * seen["total"]
    text = f"plan corrected: {stage} {duration(whole)} in all at the measured pace"
    if planned is not None:
        text += f" (by arithmetic {duration(planned[0])} to {duration(planned[1])})"
    if seen.get("price"):
        text += f", cost {whole / 3600 * seen['price']:.2f}"
    return text + "."
