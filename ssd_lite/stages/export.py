"""The stage that exports: a model folder in, GGUF files and an Ollama Modelfile out; for a run or any folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ssd_lite.atomic import write_text
from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding, GgufType
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.modelfile import learn_format, modelfile

TYPES: tuple[str, ...] = get_args(GgufType)


def export(run: RunFolder) -> dict[str, Any]:
    """Write the GGUFs of a run's merged model into gguf/, or say what was done before."""
    done = run.done("export")
    if done is not None and all(Path(run.path / file["path"]).is_file() for file in done["files"]):
        return done
    run.require("merge")
    started = time.monotonic()
    recipe = run.recipe
    summary = _write(
        run.merged,
        recipe.export.types,
        run.gguf,
        recipe.name,
        decoding=recipe.evaluate.tuned,
        threads=recipe.threads,
        enable_thinking=recipe.model.enable_thinking,
    )
    # Paths in the manifest are those inside the run, which may be moved.
    files = [{**file, "path": str(Path(file["path"]).relative_to(run.path))} for file in summary["files"]]
    summary = {**summary, "files": files, "modelfile": str(Path(summary["modelfile"]).relative_to(run.path))}
    run.finish("export", summary, time.monotonic() - started)
    return summary


def export_folder(folder: Path, types: Sequence[str], out: Path, *, threads: int | None = None) -> dict[str, Any]:
    """Write GGUFs of any model folder into `out`. Raises UserError for an unknown type or model.

    The summary has `files` (type, path, bytes, seconds), `modelfile`, and `template`: whether Ollama's was written.
    """
    unknown = [name for name in types if name not in TYPES]
    if unknown or not types:
        raise UserError(
            f"no GGUF type {unknown[0]!r}." if unknown else "no GGUF type was named.",
            where="--to",
            next_step=f"Known: {', '.join(TYPES)}.",
        )
    return _write(folder, list(dict.fromkeys(types)), out, folder.absolute().name, decoding=None, threads=threads)


def tuned_gguf(run: RunFolder, gguf_type: str) -> Path:
    """The tuned model's GGUF of this type: gguf/NAME-TYPE.gguf, written if it is not there. For evaluating and chat."""
    from ssd_lite.engines.model_source import gguf_file

    run.require("merge")
    path = _gguf_path(run.gguf, run.recipe.name, gguf_type)
    run.gguf.mkdir(exist_ok=True)
    _claim(path, run.merged, run.recipe.evaluate.tuned)
    return gguf_file(run.merged, gguf_type, path, decoding=run.recipe.evaluate.tuned, threads=run.recipe.threads)


def _gguf_path(folder: Path, name: str, gguf_type: str) -> Path:
    return folder / f"{name}-{gguf_type}.gguf"


def _claim(path: Path, folder: Path, decoding: Decoding | None) -> None:
    """Note beside a GGUF what it is made from, before it is. Raises UserError if it is there and made from others."""
    from ssd_lite.engines.model_folder import weights_sha256

    note = path.with_name(f".{path.name}.source.json")
    origin = {"weights_sha256": weights_sha256(folder), "decoding": decoding.model_dump() if decoding else None}
    if path.exists() and not (note.is_file() and json.loads(note.read_text(encoding="utf-8")) == origin):
        raise UserError(
            "is there and was not made from these weights and settings.",
            where=str(path),
            next_step="Name another --out, or move it away.",
        )
    write_text(note, json.dumps(origin) + "\n")


def _write(
    folder: Path,
    types: Sequence[str],
    out: Path,
    name: str,
    *,
    decoding: Decoding | None,
    threads: int | None,
    enable_thinking: bool | None = None,
) -> dict[str, Any]:
    from ssd_lite.engines.gguf_check import check_vocabulary
    from ssd_lite.engines.gguf_set import write_gguf_set
    from ssd_lite.engines.model_folder import ModelFolder

    ModelFolder(folder)  # what is no model is refused before anything is made
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made: {error.strerror}.", where=str(out), next_step="Name another --out."
        ) from error
    paths = {gguf_type: _gguf_path(out, name, gguf_type) for gguf_type in types}
    for path in paths.values():
        _claim(path, folder, decoding)
    seconds = write_gguf_set(folder, paths, decoding=decoding, threads=threads)
    for path in paths.values():
        check_vocabulary(path, folder)
    files = [
        {"type": t, "path": str(p), "bytes": p.stat().st_size, "seconds": round(seconds.get(t, 0.0), 2)}
        for t, p in paths.items()
    ]
    learnt = _write_modelfile(folder, paths[types[0]], decoding, enable_thinking)
    return {"files": files, "modelfile": str(out / "Modelfile"), "template": learnt}


def _write_modelfile(folder: Path, gguf: Path, decoding: Decoding | None, enable_thinking: bool | None) -> bool:
    from ssd_lite.engines.gguf_vocabulary import read_vocabulary
    from ssd_lite.engines.model_folder import read_json
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(folder, enable_thinking)
    vocabulary = read_vocabulary(folder, read_json(folder / "config.json"))
    bos = vocabulary.tokens[vocabulary.special["bos"]] if vocabulary.add_bos else None
    form = learn_format(lambda messages: tokenizer.render(messages)[0], bos)
    stops = [vocabulary.tokens[index] for index in vocabulary.end_ids]
    write_text(gguf.parent / "Modelfile", modelfile(gguf.name, form, stops, decoding))
    return form is not None
