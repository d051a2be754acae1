"""Names every file of a run and remembers which stages are done, with which settings and what they counted."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_lite import __version__
from ssd_lite.atomic import disk_errors, write_json, write_text
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import differences, dump_recipe, load_recipe
from ssd_lite.recipe_stages import STAGE_SECTIONS, Stage, settings_digest
from ssd_lite.run_lock import run_lock

FORMAT = 1


def make_out_folder(path: Path) -> None:
    """Make a folder of results where --out says, unless it is there. Raises UserError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made: {error.strerror}.", where=str(path), next_step="Name another --out."
        ) from error


def claim_folder(path: Path, file: str, recipe: Recipe, kind: str) -> None:
    """Make an empty folder ours by writing the recipe into `file`. UserError where it holds something, or cannot be."""
    if path.exists() and not (path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())):
        raise UserError(f"is there and is no {kind}.", where=str(path), next_step="Name an empty folder with --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}.",
            where=str(path.absolute()),
            next_step="Name another folder with --out.",
        ) from error
    write_text(path / file, dump_recipe(recipe))


def refuse_changes(path: Path, changed: Sequence[str], kind: str) -> None:
    """Raise UserError where a folder was started with another recipe; `changed` names the keys."""
    if changed:
        raise UserError(
            f"this {kind} was started with another recipe: {'; '.join(changed)}.",
            where=str(path),
            next_step="Name another folder with --out, or leave the recipe as it was.",
        )


class ArmFolder:
    """The files of one arm: one model under one decoding. `name` is for people; None takes the folder's."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or path.name
        self.samples = path / "samples.jsonl"
        self.grades = path / "grades.jsonl"
        self.report = path / "report.json"


class RunFolder:
    """A run on disk. `open` and `create` are the ways in."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.manifest_file = path / "manifest.json"
        self.log_file = path / "log.txt"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.targets = path / "targets" / "samples.bin"
        self.curate_grades = path / "curate_grades.jsonl"
        self.train_rows = path / "train.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.merged = path / "merged"
        self.gguf = path / "gguf"
        self.comparison = path / "evaluations" / "comparison.json"
        self.report = path / "report.html"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """A new run, or the run that is there; what no stage has begun with yet may have changed in its recipe.

        Raises UserError that names what differs and the stage that stands on it.
        """
        if (path / "recipe.yaml").is_file():
            run = cls.open(path)
            changed = differences(run.recipe, recipe)
            return run._with(recipe, changed) if changed else run
        claim_folder(path, "recipe.yaml", recipe, "run folder")
        run = cls(path, recipe)
        run._write_manifest({"format": FORMAT, "created": _now(), "ssd_lite": __version__, "stages": {}})
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run at `path`. Raises UserError if there is none, or if a newer version made it."""
        if not (path / "recipe.yaml").is_file():
            raise UserError(
                "is no run folder (no recipe.yaml in it).",
                where=str(path.absolute()),
                next_step="`ssd-lite run RECIPE` makes one.",
            )
        run = cls(path, load_recipe(str(path / "recipe.yaml")))
        made_by = run.manifest().get("format", FORMAT)
        if made_by != FORMAT:
            raise UserError(f"was made by run format {made_by}, this program reads {FORMAT}.", where=str(path))
        return run

    def arm(self, name: str) -> ArmFolder:
        """The folder of an arm, made if need be."""
        folder = self.path / "evaluations" / name
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return ArmFolder(folder)

    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk; empty where there is none yet."""
        try:
            value = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"is damaged ({error}).", where=str(self.manifest_file)) from error
        return dict(value)

    def _write_manifest(self, value: Mapping[str, Any]) -> None:
        write_json(self.manifest_file, value)

    def note(self, key: str, value: Any) -> None:
        """Set one top-level key of the manifest."""
        self._write_manifest({**self.manifest(), key: value})

    def _with(self, recipe: Recipe, changed: Sequence[str]) -> RunFolder:
        """This run under another recipe, unless a stage that has begun stands on what changed."""
        other = RunFolder(self.path, recipe)
        for stage in self._begun():
            if self.settings_digest(stage) != other.settings_digest(stage):
                binding = differences(self.recipe, recipe, STAGE_SECTIONS[stage]) or changed
                refuse_changes(self.path, binding, f"run's stage {stage!r}")
        with run_lock(self.path):  # a run that is at work reads its recipe at each stage
            write_text(self.path / "recipe.yaml", dump_recipe(recipe))
            self.log(f"recipe changed: {'; '.join(changed)}")
        return other

    def _begun(self) -> Iterator[Stage]:
        """The stages whose work is on disk, done or not. What merge and export leave behind is tied to its source."""
        work: dict[str, list[Path]] = {
            "sample": [self.samples],
            "curate": [self.curate_grades],
            "train": [self.metrics],
            "evaluate": list((self.path / "evaluations").rglob("samples.jsonl")),
        }
        done = self.manifest().get("stages", {})
        for stage in STAGE_SECTIONS:
            if stage in done or any(file.is_file() and file.stat().st_size > 0 for file in work.get(stage, [])):
                yield stage

    def start(self, stage: Stage, work: Path) -> None:
        """Note the settings of a stage that begins. Raises UserError if `work` was begun with others."""
        digest, started = self.settings_digest(stage), self.manifest().get("started", {})
        begun = work.is_file() and work.stat().st_size > 0
        if begun and started.get(stage, digest) != digest:
            raise self._changed(stage, "begun")
        if started.get(stage) != digest:
            self.note("started", {**started, stage: digest})

    def _changed(self, stage: Stage, state: str) -> UserError:
        return UserError(
            f"recipe.yaml was changed after the stage {stage!r} was {state} with other settings.",
            where=str(self.path),
            next_step="Put the old values back, or start a new run with --out.",
        )

    def settings_digest(self, stage: Stage) -> str:
        """Digest of every setting this stage's result stands on."""
        return settings_digest(self.recipe, stage)

    def done(self, stage: Stage) -> dict[str, Any] | None:
        """What the stage counted, or None if it is not done. Raises UserError if recipe.yaml was changed since."""
        entry = self.manifest().get("stages", {}).get(stage)
        if entry is None:
            return None
        if entry["settings_digest"] != self.settings_digest(stage):
            raise self._changed(stage, "done")
        return dict(entry["summary"])

    def finish(self, stage: Stage, summary: Mapping[str, Any], seconds: float) -> None:
        """Remember that a stage is done, what it counted and how long this process worked at it."""
        manifest = self.manifest()
        manifest.setdefault("stages", {})[stage] = {
            "finished": _now(),
            "seconds": round(seconds, 2),
            "settings_digest": self.settings_digest(stage),
            "summary": dict(summary),
        }
        self._write_manifest(manifest)

    def require(self, stage: Stage) -> dict[str, Any]:
        """The summary of a stage that must be done already."""
        summary = self.done(stage)
        if summary is None:
            raise UserError(
                f"the stage {stage!r} is not done yet.",
                where=str(self.path),
                next_step=f"Type: ssd-lite {stage} {self.path}",
            )
        return summary

    def log(self, line: str) -> None:
        """Append one line, with the time, to log.txt. A disk that refuses it neither stops work nor hides an error."""
        with contextlib.suppress(OSError), self.log_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{_now()} [{os.getpid()}] {line}\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
