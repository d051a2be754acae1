"""A stage that finds nothing to learn from: noted in the run's manifest, since its process cannot return it."""

from __future__ import annotations

from collections.abc import Callable

from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder

_KEY = "nothing_to_learn"


def note_nothing(run: RunFolder, why: str) -> None:
    """Leave a word for whoever started the stage, just before it raises NothingToLearnError."""
    run.note(_KEY, why)


def nothing_left(run: RunFolder, work: Callable[[], object]) -> str | None:
    """Do the work on a run; says why where one of its stages found nothing to learn from, else None."""
    if _KEY in run.manifest():
        run.note(_KEY, None)  # of an earlier try
    try:
        work()
    except UserError:
        noted = run.manifest().get(_KEY)
        if noted is None:
            raise
        return str(noted).rstrip(".")
    return None
