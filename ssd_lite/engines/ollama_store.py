"""Models that Ollama has fetched: from a name to the GGUF in its store of blobs. Reads only."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path

PREFIX = "ollama:"
_MODEL, _ADAPTER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
# The store's folders of manifests and its default registries: the first of each is that of Ollama up to now, the second
# that of its newer layout.
_MANIFESTS, _REGISTRIES = ("manifests", "manifests-v2", "manifest-v2"), ("registry.ollama.ai", "ollama.com")
_NAME = re.compile(
    r"(?:(?P<host>[\w.-]+\.[\w.-]+(?::\d+)?)/)?(?:(?P<space>[\w.-]+)/)?(?P<model>[\w.-]+)(?::(?P<tag>[\w.-]+))?"
)


def store_folder() -> Path:
    """`$OLLAMA_MODELS`, else `~/.ollama/models`, else where a Linux service keeps it."""
    named = os.environ.get("OLLAMA_MODELS")
    if named:
        return user_path(named, "OLLAMA_MODELS")
    own, service = user_path("~/.ollama/models", "OLLAMA_MODELS"), Path("/usr/share/ollama/.ollama/models")
    # os.path, unlike Path, says no where the folder is another user's.
    return service if os.path.isdir(service) and not own.is_dir() else own


def ollama_gguf(name: str, key: str) -> Path:
    """The GGUF of `ollama:[HOST/][NAMESPACE/]MODEL[:TAG]`. Raises UserError, naming the recipe's `key`, if it is not
    there, or is no single GGUF."""
    store = store_folder()
    manifest = _manifest(name, store, key)
    layers = [layer for layer in manifest.get("layers", []) if isinstance(layer, dict)]
    if any(layer.get("mediaType") == _ADAPTER for layer in layers):
        raise UserError(
            f"{name} has an adapter beside its weights, which is not applied here.",
            where=key,
            next_step="Merge it first, or name the base model.",
        )
    digests = [str(layer.get("digest")) for layer in layers if layer.get("mediaType") == _MODEL]
    if len(digests) != 1:
        raise UserError(f"{name} is {len(digests)} files of weights, not one GGUF.", where=key)
    blob = store / "blobs" / digests[0].replace(":", "-")
    if not re.fullmatch(r"sha256-[0-9a-f]{64}", blob.name) or not blob.is_file():
        raise UserError(f"its weights are not there ({blob.name}).", where=str(store), next_step=f"ollama pull {name}")
    return blob


def _manifest(name: str, store: Path, key: str) -> dict[str, Any]:
    parts = _NAME.fullmatch(name.removeprefix(PREFIX))
    if parts is None or ".." in name:
        raise UserError(
            f"{name!r} is no name of an Ollama model.",
            where=key,
            next_step="Write ollama:MODEL:TAG, see `ollama list`.",
        )
    hosts = [parts["host"]] if parts["host"] else _REGISTRIES
    inside = Path(parts["space"] or "library") / parts["model"] / (parts["tag"] or "latest")
    for folder in _MANIFESTS:
        for host in hosts:
            file = store / folder / host / inside
            if os.path.isfile(file):
                try:
                    value = json.loads(file.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    raise UserError(f"cannot be read ({error}).", where=str(file)) from error
                return value if isinstance(value, dict) else {}
    raise UserError(
        f"Ollama has no model {name.removeprefix(PREFIX)} in {store}.",
        where=key,
        next_step="`ollama list` names those it has; $OLLAMA_MODELS says where they lie.",
    )
