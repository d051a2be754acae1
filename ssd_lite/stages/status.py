"""What a run folder holds so far: stages done, records written, who works in it, the last training step."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from ssd_lite import heartbeat
from ssd_lite.atomic import is_whole, leftovers
from ssd_lite.journal import decode_line
from ssd_lite.progress import duration
from ssd_lite.recipe_stages import Stage, stages_of
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import LOCK_FILE


def status(run: RunFolder) -> dict[str, Any]:
    """Stages with their seconds, journal lines so far, the holder of the lock, the heartbeat, the last training step.

    Reads only; a torn last line is left out. `next` is the first stage that is not done, None where all are.
    """
    entries = run.manifest().get("stages", {})
    stages = {stage: _stage(run, stage, entries.get(stage)) for stage in stages_of(run.recipe)}
    counts = {"samples": lines(run.samples), "training_rows": lines(run.train_rows), "steps": lines(run.metrics)}
    evaluations = run.path / "evaluations"
    arms = {
        str(folder.relative_to(evaluations)): {
            "samples": lines(folder / "samples.jsonl"),
            "grades": lines(folder / "grades.jsonl"),
        }
        for folder in [*sorted(evaluations.glob("*/")), *sorted(evaluations.glob("guard/*/*/"))]
        if folder != evaluations / "guard"
    }
    return {
        "run": str(run.path),
        "name": run.recipe.name,
        "stages": stages,
        "next": next((stage for stage, entry in stages.items() if not entry["done"]), None),
        "counts": counts,
        "arms": arms,
        "in_use_by": holder(run.path),
        "heartbeat": heartbeat.read(run.path),
        "last_step": last_record(run.metrics),
        "leftovers": [path.name for path in leftovers(run.path)],
    }


def _stage(run: RunFolder, stage: Stage, entry: dict[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"done": False}
    return {"done": has_files(run, stage), "finished": entry["finished"], "seconds": entry["seconds"]}


def has_files(run: RunFolder, stage: Stage) -> bool:
    """True if the files that a done stage left are there (folders: with their sizes)."""
    match stage:
        case "sample":
            return run.samples.is_file()
        case "curate":
            return run.train_rows.is_file()
        case "train":
            return is_whole(run.adapter)
        case "merge":
            return is_whole(run.merged)
        case "evaluate":
            return run.comparison.is_file()
        case "export":
            files = run.manifest().get("stages", {}).get("export", {}).get("summary", {}).get("files", [])
            return all((run.path / file["path"]).is_file() for file in files)
        case "report":
            return run.report.is_file()


def lines(path: Path) -> int:
    """Whole lines of a file; 0 where there is none."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole record of a journal, None where there is none."""
    try:
        whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return None
    try:
        return decode_line(whole[-1]) if whole else None
    except ValueError:
        return None


def heartbeat_lines(beat: dict[str, Any] | None, in_use: bool) -> list[str]:
    """The heartbeat for people: pace, card, money, how old it is. That a process works is `in_use`, the lock's word."""
    if beat is None:
        return []
    parts = [f"{beat['label']}: {beat['done']}/{beat['total']} {beat['unit']}"] if beat.get("label") else []
    parts += [f"{beat['tokens_per_s']:.0f} tok/s"] if beat.get("tokens_per_s") else []
    parts += [beat["note"]] if beat.get("note") else []
    if beat.get("card_total_bytes"):
        parts.append(f"card {beat['card_used_bytes'] / 2**30:.1f} of {beat['card_total_bytes'] / 2**30:.1f} GiB")
    parts += [f"{duration(beat['seconds_left'])} left"] if beat.get("seconds_left") and in_use else []
    parts += [f"{duration(beat['run_seconds'])} in all"]
    parts += [f"cost {beat['cost']:.2f}"] if beat.get("cost") is not None else []
    state, age = beat["state"], duration(max(0.0, time.time() - beat["updated_unix"]))
    if state == heartbeat.WORKING and not in_use:
        state = "ended without a word (killed?)"
    return [
        f"{beat['stage']}, {state}, {age} ago: {' · '.join(parts)}",
        *([beat["error"]] if beat.get("error") else []),
    ]


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the run's lock (pid, host, since), None where nobody does."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 4096, 0).decode(errors="replace")
        try:
            return dict(json.loads(text))
        except ValueError:
            return {"pid": None, "host": None, "since": None}
    else:
        return None
    finally:
        os.close(descriptor)
