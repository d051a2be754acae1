"""Exports of a run beyond its recipe: noted in the manifest, so that what serves and pushes a run knows them too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_lite.run_folder import RunFolder

_KEY = "later_exports"


def note_export(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Note what `export RUN --to` wrote into the run's gguf/: files, matrix, checks. The stage's summary stays.

    A file that is noted already is noted anew, as it is now.
    """
    entry = _inside(run, summary)
    paths = {file["path"] for file in entry["files"]}
    before = [
        {**old, "files": left}
        for old in run.manifest().get(_KEY, [])
        if (left := [file for file in old["files"] if file["path"] not in paths])
    ]
    run.note(_KEY, [*before, entry])


def exported_files(run: RunFolder) -> list[dict[str, Any]]:
    """Files of the run's export and then of later ones (type, path inside the run, bytes), those that are whole."""
    stage = (run.done("export") or {"files": []})["files"]
    later = [file for entry in run.manifest().get(_KEY, []) for file in entry["files"]]
    found = {file["path"]: file for file in [*later, *stage]}
    ordered = dict.fromkeys(file["path"] for file in [*stage, *later])
    return [found[path] for path in ordered if _is_whole(run.path / path, found[path]["bytes"])]


def later_matrices(run: RunFolder) -> list[str]:
    """Importance matrices of later exports that are there, as paths inside the run."""
    names = dict.fromkeys(entry["imatrix"] for entry in run.manifest().get(_KEY, []) if "imatrix" in entry)
    return [name for name in names if (run.path / name).is_file()]


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _inside(run: RunFolder, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The paths inside the run, which may be moved."""

    def inside(path: str) -> str:
        return str(Path(path).resolve().relative_to(run.path.resolve()))

    entry: dict[str, Any] = {"files": [{**file, "path": inside(file["path"])} for file in summary["files"]]}
    if "imatrix" in summary:
        entry["imatrix"] = inside(summary["imatrix"])
    return {**entry, "checks": summary["checks"]}
