"""Findings about the Hugging Face Hub: a token, offline mode, and whether it can be reached. A token is never shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ssd_lite.errors import UserError
from ssd_lite.stages.checkup.child import Probed
from ssd_lite.stages.checkup.finding import Finding
from ssd_lite.user_path import user_path

# What huggingface_hub takes for true.
_TRUE = {"1", "ON", "YES", "TRUE"}
_LOGIN = "hf auth login  # or: export HF_TOKEN=…"


def offline(environment: Mapping[str, str]) -> bool:
    """True where the user forbids requests to the Hub."""
    return any(environment.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_home(environment: Mapping[str, str]) -> Path:
    """The folder of huggingface_hub: `$HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`."""
    if environment.get("HF_HOME"):
        return user_path(environment["HF_HOME"], "HF_HOME")
    return user_path(environment.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "huggingface"


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where models from the Hub are kept."""
    named = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return user_path(named, "HF_HUB_CACHE") if named else hub_home(environment) / "hub"


def token_finding(environment: Mapping[str, str]) -> Finding:
    """Is there a token, and in what form? Its text does not leave this function."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environment.get(name, "").strip():
            return _form(environment[name], f"in {name}")
    place = environment.get("HF_TOKEN_PATH") or hub_home(environment) / "token"
    try:
        text = user_path(place, "HF_TOKEN_PATH").read_text(encoding="utf-8", errors="replace")
    except (OSError, UserError):
        text = ""
    if text.strip():
        return _form(text, f"in {place}")
    return Finding("hub token", "absent", "none; needed for gated and private models and for push", _LOGIN)


def _form(text: str, place: str) -> Finding:
    if any(not 33 <= ord(letter) <= 126 for letter in text.strip()):
        return Finding("hub token", "warn", f"{place}, but it has spaces or other letters that no token has", _LOGIN)
    return Finding("hub token", "ok", f"{place}; not tried")


def reach_finding(probed: Probed | None, environment: Mapping[str, str]) -> Finding:
    """Can the Hub be reached? `probed` None: it was not asked, because of offline mode."""
    if offline(environment) or probed is None:
        return Finding("hub", "ok", "offline by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE: only cached models load")
    if probed.facts is not None and probed.facts["reached"]:
        return Finding("hub", "ok", "reached")
    why = probed.trouble if probed.facts is None else probed.facts["error"]
    advice = "export HF_HUB_OFFLINE=1  # or mend the network, HTTPS_PROXY, HF_ENDPOINT"
    return Finding("hub", "warn", f"cannot be reached ({why}); packaged models and folders work", advice)
