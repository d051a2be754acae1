"""Licences: what a base says about its own, and how the Hub wants it said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Identifiers of the Hub's documentation (huggingface.co/docs/hub/repositories-licenses); any other is "other".
LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "h-research",
    "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail",
    "openrail++", "osl-3.0", "other", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
PROMPTS = {"starter": "apache-2.0", "humaneval": "mit", "mbpp": "cc-by-4.0", "rstar-coder": "cc-by-4.0"}
"""Of the problem sets that are known here, by the first part of their name; see docs/problems.md."""


def licence_of(folder: Path) -> dict[str, str]:
    """What a model folder says: the front matter of its card, or the metadata of the GGUF it came from."""
    from ssd_lite.engines.weights.model_folder import SOURCE_FILE

    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
        wanted = ("license", "license_name", "license_link")
        pairs = [line.split(":", 1) for line in front if line.partition(":")[0] in wanted]
        found = {key: value.strip().strip("\"'") for key, value in pairs if value.strip()}
        if found:
            return found
    if (folder / SOURCE_FILE).is_file():
        licence = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8")).get("license")
        return {"license": str(licence)} if licence else {}
    return {}


def licence_fields(base: Mapping[str, Any]) -> dict[str, str]:
    """The base's licence as the Hub takes it: an identifier it knows, or `other` with a name and, if known, a link."""
    said = str(base.get("license", ""))
    if not said:
        return {}
    named = {key: str(base[key]) for key in ("license_name", "license_link") if base.get(key)}
    if said.lower() in LICENCES and said.lower() != "other":
        return {"license": said.lower(), **named}
    name = named.get("license_name") or re.sub(r"[^a-z0-9.]+", "-", said.lower()).strip("-")
    return {"license": "other", **named, "license_name": name}
