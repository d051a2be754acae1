"""The stage that exports: a run or any model in, GGUF files out, checked, and beside them what serves them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ssd_lite.errors import UserError
from ssd_lite.recipe_export import Export
from ssd_lite.recipe_section import Decoding, GgufType
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.exports.check import Replying, check_exported, check_run
from ssd_lite.stages.exports.files import gguf_path, write_files
from ssd_lite.stages.exports.importance import AUTO, Importance, importance_of, run_importance
from ssd_lite.stages.exports.later_exports import exported_files, note_export
from ssd_lite.stages.exports.serving import GUIDE, served_files, write_serving
from ssd_lite.stages.exports.source import Source, adapter_source, folder_source, tuned_source

TYPES: tuple[str, ...] = get_args(GgufType)
_BESIDE = ("modelfile", "preset", "guide", "imatrix")
Check = Callable[[Mapping[str, Path], Source], dict[str, Any]]


@dataclass(frozen=True)
class _How:
    """How files are written, and how they are to be decoded; a plain folder says nothing of the latter."""

    importance: Importance | None = None
    threads: int | None = None
    decoding: Decoding | None = None
    enable_thinking: bool | None = None
    max_new_tokens: int | None = None


def export(run: RunFolder) -> dict[str, Any]:
    """Write the GGUFs of a run's tuned model into gguf/, or say what was done before.

    Where merged/ is not there, base and adapter are merged tensor by tensor while writing.
    """
    done = run.done("export")
    if done is not None and all(Path(run.path / file["path"]).is_file() for file in done["files"]):
        _serve_what_is_there(run)
        return done
    started, recipe = time.monotonic(), run.recipe
    if not recipe.export.types:
        none: dict[str, Any] = {"files": [], "checks": {}}
        run.finish("export", none, 0.0)
        return none
    importance = run_importance(run) if recipe.export.imatrix else None
    summary = _export_run(run, recipe.export.types, run.gguf, importance, recipe.export.check)
    # Paths in the manifest are those inside the run, which may be moved.
    files = [{**file, "path": str(Path(file["path"]).relative_to(run.path))} for file in summary["files"]]
    beside = {key: str(Path(summary[key]).relative_to(run.path)) for key in _BESIDE if key in summary}
    summary = {**summary, **beside, "files": files}
    run.finish("export", summary, time.monotonic() - started)
    return summary


def export_more(
    run: RunFolder,
    types: Sequence[str] | None = None,
    out: Path | None = None,
    *,
    imatrix: str | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Other GGUFs of a run than its recipe names, by default into gguf/ too; the run's own files and summary stay.

    Those in gguf/ are noted in the manifest, named by what serves the run, and pushed with it; another `out` is not.

    `imatrix` is "auto" for the training rows, or a file as in `export_folder`.
    """
    chosen = known_types(run.recipe.export.types if types is None else types)
    importance = None
    if imatrix == AUTO or (imatrix is None and run.recipe.export.imatrix):
        importance = run_importance(run)
    elif imatrix is not None:
        importance = importance_of(Path(imatrix), tuned_source(run).folder, run.recipe.export.imatrix_tokens)
    into = run.gguf if out is None or out.resolve() == run.gguf.resolve() else out
    return _export_run(run, chosen, into, importance, check, later=True)


def export_folder(
    folder: Path,
    types: Sequence[str],
    out: Path | None = None,
    *,
    adapter: Path | None = None,
    imatrix: str | None = None,
    threads: int | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Write GGUFs of any model folder into `out`, by default NAME-gguf. UserError for an unknown type or model.

    `adapter` is merged into it tensor by tensor, and names the files. `imatrix` is a matrix or texts, see
    `importance_of`. The summary has `files` (type, path, bytes, seconds), what `write_serving` wrote beside them, and
    `checks`: what `check_exported` found, with `check` the measured part too.
    """
    chosen = known_types(types)
    if imatrix == AUTO:
        raise UserError(
            "only a run has texts of its own.", where="--imatrix", next_step="Name them: --imatrix train.jsonl"
        )
    source = folder_source(folder) if adapter is None else adapter_source(folder, adapter)
    default = Export.model_fields["imatrix_tokens"].default
    importance = None if imatrix is None else importance_of(Path(imatrix), folder, default)

    def checked(paths: Mapping[str, Path], source: Source) -> dict[str, Any]:
        replying = Replying(threads=threads)
        return check_exported(folder, paths, replying=replying, measure=check, has_weights=source.has_weights)

    how = _How(importance, threads)
    summary, files = _export(source, chosen, out or Path(f"{source.name}-gguf"), checked, how)
    return {**summary, **_serve(source, files, how)}


def known_types(types: Sequence[str]) -> list[str]:
    """The types in order, each once. Raises UserError for one that is unknown, or for none."""
    unknown = [name for name in types if name not in TYPES]
    if unknown or not types:
        raise UserError(
            f"no GGUF type {unknown[0]!r}." if unknown else "no GGUF type was named.",
            where="--to",
            next_step=f"Known: {', '.join(TYPES)}.",
        )
    return list(dict.fromkeys(types))


def tuned_gguf(run: RunFolder, gguf_type: str) -> Path:
    """The tuned model's GGUF of this type, written if it is not there. For evaluating and chat.

    With export.imatrix it is the file that `export` writes, but for model.gguf_type: there the base, which it is
    compared with, has no matrix either.
    """
    recipe = run.recipe
    importance = run_importance(run) if recipe.export.imatrix and gguf_type != recipe.model.gguf_type else None
    files = write_files(
        tuned_source(run),
        [gguf_type],
        run.gguf,
        decoding=recipe.evaluate.tuned,
        importance=importance,
        threads=recipe.threads,
    )
    return files.paths[gguf_type]


def _export_run(
    run: RunFolder,
    types: Sequence[str],
    out: Path,
    importance: Importance | None,
    check: bool,
    *,
    later: bool = False,
) -> dict[str, Any]:
    def checked(paths: Mapping[str, Path], source: Source) -> dict[str, Any]:
        return check_run(run, paths, source.folder, measure=check, has_weights=source.has_weights)

    source, how = tuned_source(run), _how(run, importance)
    before = _exported(run) if out == run.gguf else []
    summary, files = _export(source, types, out, checked, how)
    if later and out == run.gguf:
        note_export(run, summary)  # before anything names the files
        files = [*before, *files]
    else:
        files = [*files, *before]
    return {**summary, **_serve(source, files, how)}


def _how(run: RunFolder, importance: Importance | None = None) -> _How:
    recipe = run.recipe
    return _How(
        importance,
        recipe.threads,
        decoding=recipe.evaluate.tuned,
        enable_thinking=recipe.model.enable_thinking,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )


def _exported(run: RunFolder) -> list[tuple[str, Path]]:
    """The files of all exports so far: what serves a run names them too when others join them."""
    return [(file["type"], run.path / file["path"]) for file in exported_files(run)]


def _serve_what_is_there(run: RunFolder) -> None:
    """Write Modelfile and guide again where files that they name are gone, or are not known to the manifest."""
    named, files = served_files(run.gguf / GUIDE), _exported(run)
    if files and named is not None and set(named) != {path.name for _, path in files}:
        _serve(tuned_source(run), files, _how(run))


def _serve(source: Source, files: Sequence[tuple[str, Path]], how: _How) -> dict[str, Any]:
    """What stands beside the files; of two of one type, one was made with a matrix and one without."""
    named: dict[str, Path] = {}
    for gguf_type, path in dict.fromkeys(files):
        plain = path.name == gguf_path(path.parent, source.name, gguf_type).name
        other = f"{gguf_type}, {'without' if plain else 'with'} importance matrix"
        named[other if gguf_type in named else gguf_type] = path
    return write_serving(
        source.folder,
        named,
        source.name,
        decoding=how.decoding,
        enable_thinking=how.enable_thinking,
        max_new_tokens=how.max_new_tokens,
    )


def _export(
    source: Source, types: Sequence[str], out: Path, check: Check, how: _How
) -> tuple[dict[str, Any], list[tuple[str, Path]]]:
    """Files, then the checks: what fails one is not offered. The summary, and the files for what serves them."""
    from ssd_lite.engines.checks.gguf_check import check_vocabulary

    written = write_files(source, types, out, decoding=how.decoding, importance=how.importance, threads=how.threads)
    for path in written.paths.values():
        check_vocabulary(path, source.folder)
    files = [
        {"type": t, "path": str(p), "bytes": p.stat().st_size, "seconds": round(written.seconds.get(t, 0.0), 2)}
        for t, p in written.paths.items()
    ]
    matrix = {"imatrix": str(written.imatrix)} if written.imatrix else {}
    return {"files": files, **matrix, "checks": check(written.paths, source)}, list(written.paths.items())
