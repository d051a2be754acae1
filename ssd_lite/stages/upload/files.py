"""What is pushed of a run: for each kind its files, as they are or cleaned of local paths, its card and its mark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from ssd_lite.atomic import DONE_FILE, is_whole
from ssd_lite.errors import UserError
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.recipe_stages import Stage, stages_of
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.exports.later_exports import exported_files, later_matrices
from ssd_lite.stages.exports.serving import GUIDE, served_files
from ssd_lite.stages.upload.cards import model_text, report_text, samples_text
from ssd_lite.stages.upload.privacy import Privacy
from ssd_lite.stages.upload.samples import write_samples

RepoType = Literal["model", "dataset", "space"]
MARK = "ssd_lite_push.json"
"""Says whose files a repository holds. Its bytes are fixed by the run, so that its hash on the Hub is answer enough."""


@dataclass(frozen=True)
class Kind:
    """One value of --what: the stage it needs, the repository's type, and what is added to the run's name."""

    stage: Stage
    repo_type: RepoType
    suffix: str


KINDS: dict[str, Kind] = {
    "adapter": Kind("train", "model", "-adapter"),
    "merged": Kind("merge", "model", ""),
    "gguf": Kind("export", "model", "-gguf"),
    "samples": Kind("sample", "dataset", "-samples"),
    "report": Kind("report", "space", "-report"),
}
_BESIDE_GGUF = ("modelfile", "preset", "guide", "imatrix")
_LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_RUNS_CODE = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.so")
# Files of this program and settings of a model may name a place; a tokenizer's never do, and must not change by a byte.
_MAY_NAME_PLACES = (
    "ssd_lite_*.json", "adapter_config.json", "config.json", "*.html", "report.json", "comparison.json",
    "*.preset.json", "SERVING.md",
)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One file of a repository: its path there, and a file here or the bytes themselves."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def refuse_what_is_not_there(run: RunFolder, what: str) -> None:
    """Raise UserError where the stage is not done, its files are not whole, or could do more than hold numbers."""
    stage = KINDS[what].stage
    if stage not in stages_of(run.recipe):
        raise UserError("GRPO draws its own completions and keeps none.", where=f"--what {what}")
    summary = run.require(stage)
    match what:
        case "adapter":
            if run.recipe.train.method == "full":
                raise UserError(
                    "full fine-tuning has no adapter.", where="--what adapter", next_step="Push it with --what merged."
                )
            _refuse_broken(run.adapter)
        case "merged":
            _refuse_broken(run.merged)
            _refuse_other_weights(run.merged, str(summary["weights_sha256"]))
        case "gguf":
            if not summary["files"] and not exported_files(run):
                raise UserError(
                    "the run has no GGUF (export.types).",
                    where="--what gguf",
                    next_step=f"Type: ssd-lite export {run.path} --to q4_k_m",
                )
            for file in summary["files"]:
                _refuse_missing(run, run.path / file["path"], stage, file["bytes"])
            _refuse_unknown(run)
        case "report":
            _refuse_missing(run, run.report, stage)
        case "samples":
            _refuse_missing(run, run.samples, stage)


def _refuse_missing(run: RunFolder, path: Path, stage: Stage, size: int | None = None) -> None:
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        raise UserError("is missing or cut.", where=str(path), next_step=f"Type: ssd-lite {stage} {run.path}")


def _refuse_unknown(run: RunFolder) -> None:
    """Modelfile and guide travel with what they name, or not at all."""
    sent = {Path(file["path"]).name for file in exported_files(run)}
    unknown = next((name for name in served_files(run.gguf / GUIDE) or [] if name not in sent), None)
    if unknown is not None:
        raise UserError(
            f"names {unknown}, which is missing, cut or not noted in the manifest.",
            where=str(run.gguf / GUIDE),
            next_step=f"Type: ssd-lite export {run.path}",
        )


def _refuse_broken(folder: Path) -> None:
    if not is_whole(folder):
        raise UserError("a file in it is missing or cut.", where=str(folder), next_step="Make it again.")
    code = [path.name for path in sorted(folder.rglob("*")) if any(fnmatch(path.name, p) for p in _RUNS_CODE)]
    if code:
        raise UserError(
            f"holds {code[0]}, which can run code on a reader's machine and was not written by this program.",
            where=str(folder),
            next_step="Move it away, or merge again.",
        )


def _refuse_other_weights(folder: Path, sha256: str) -> None:
    from ssd_lite.engines.weights.model_folder import ModelFolder, weights_sha256

    ModelFolder(folder)  # refuses code of its own, quantised weights and damaged files
    if weights_sha256(folder) != sha256:
        raise UserError(
            "its weights are not those that were merged, checked and evaluated.",
            where=str(folder),
            next_step="Delete this folder, then merge and evaluate again.",
        )


def pieces(run: RunFolder, what: str, repos: Mapping[str, str]) -> list[Piece]:
    """All files of `what`, the mark first, large ones before small ones, the card last."""
    privacy = Privacy(run)
    match what:
        case "adapter":
            names = ("adapter_config.json", "adapter_model.safetensors", "ssd_lite_base.json")
            found = {name: run.adapter / name for name in names if (run.adapter / name).is_file()}
            found |= _licences(run)
        case "merged":
            left_out = (DONE_FILE, "README.md")
            files = (path for path in run.merged.iterdir() if path.is_file())
            found = {path.name: path for path in files if path.name not in left_out and not path.name.startswith(".")}
        case "gguf":
            summary = run.require("export")
            beside = [summary[key] for key in _BESIDE_GGUF if key in summary]
            sent = [*(file["path"] for file in exported_files(run)), *beside, *later_matrices(run)]
            found = {Path(name).name: run.path / name for name in sent}
            found |= _licences(run)
        case "report":
            found = {str(path.relative_to(run.path)): path for path in _report_files(run)}
        case _:
            return _samples(run, privacy)
    text = report_text(run, repos) if what == "report" else model_text(run, what, repos)
    parts = [_cleaned(name, path, privacy) for name, path in found.items()]
    return _ordered(run, what, [*parts, _recipe(run, privacy)], privacy.clean(text))


def _report_files(run: RunFolder) -> list[Path]:
    wanted = [run.report, run.path / "diagnosis.html", run.comparison, run.metrics]
    wanted += [run.arm(arm).report for arm in ("base", "tuned")]
    return [path for path in wanted if path.is_file()]


def _licences(run: RunFolder) -> dict[str, Path]:
    """Licence texts of the base, which are passed on with everything made from it."""
    if run.merged.is_dir():
        folder = run.merged
    else:
        from ssd_lite.engines.model_source import hf_folder

        folder = hf_folder(base_model(run))
    files = (path for path in folder.iterdir() if any(fnmatch(path.name, p) for p in _LICENCE_FILES))
    return {path.name: path for path in files if path.is_file()}


def _cleaned(name: str, path: Path, privacy: Privacy) -> Piece:
    if not any(fnmatch(path.name, pattern) for pattern in _MAY_NAME_PLACES):
        return Piece(name, path)
    before = path.read_text(encoding="utf-8")
    after = privacy.clean(before)
    return Piece(name, path if after == before else after.encode())


def _recipe(run: RunFolder, privacy: Privacy) -> Piece:
    return Piece("recipe.yaml", privacy.clean(dump_recipe(run.recipe)).encode())


def _ordered(run: RunFolder, what: str, found: list[Piece], text: str) -> list[Piece]:
    """The mark with the first commit, so that a push that is cut short is known as ours; the card with the last."""
    digest = run.settings_digest("sample" if what == "samples" else "train")
    mark = {"made_by": "ssd-lite push", "what": what, "run": run.recipe.name, "settings": digest}
    by_size = sorted(found, key=lambda piece: (-piece.size, piece.name))
    head = Piece(MARK, (json.dumps(mark, indent=2) + "\n").encode())
    return [head, *by_size, Piece("README.md", text.encode())]


def _samples(run: RunFolder, privacy: Privacy) -> list[Piece]:
    """The samples as a data set, written beside the run's own files."""
    written = write_samples(run, run.path / "push" / "samples.jsonl")
    text = samples_text(run, written.rows, written.kept)
    return _ordered(run, "samples", [Piece("samples.jsonl", written.path), _recipe(run, privacy)], privacy.clean(text))


def git_hash(data: bytes) -> str:
    """Git's name for a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
