"""Findings about PyTorch, the NVIDIA driver and the cards: do the three go together, and is the card free?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.stages.checkup import nvidia
from ssd_lite.stages.checkup.child import Probed, run_limited
from ssd_lite.stages.checkup.finding import GIB, Finding, gib
from ssd_lite.stages.checkup.nvidia import Card, Driver, Tenant

INSTALL_TORCH = 'pip install "ssd-lite[train]"'
# PyPI's wheel for Linux is a CUDA build.
CUDA_TORCH = "pip install --force-reinstall torch  # the CUDA build"
# Wheels for CUDA 12 run on every driver from 525 on; PyTorch's install page lists what there is for a version.
CUDA_12_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
NEW_DRIVER = "sudo apt-get install nvidia-driver-580  # in a container the host's driver counts: rent one with a newer"
_LEAST_CAPABILITY = (8, 0)
# A desktop holds some hundred MiB; more is somebody's work.
_TAKEN = 1 * GIB
_SMI_LIMIT_S = 15.0
_PROC = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Cards:
    """What the driver's tools say. `smi` False: there is no nvidia-smi; `trouble`: why it failed, and what mends it."""

    driver: Driver
    cards: tuple[Card, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    smi: bool = True
    trouble: tuple[str, str] | None = None
    device_file: bool = True


def ask_driver() -> Cards:
    """Ask nvidia-smi and the kernel, before a process of ours is on the card."""
    try:
        kernel = nvidia.driver_of_proc(_PROC.read_text())
    except OSError:
        kernel = Driver(None, None)
    device_file = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if shutil.which("nvidia-smi") is None:
        return Cards(kernel, smi=False, device_file=device_file)
    code, out, err = run_limited(["nvidia-smi"], _SMI_LIMIT_S)
    if code != 0:
        said = f"did not answer within {_SMI_LIMIT_S:.0f} s" if code is None else out + err
        return Cards(kernel, trouble=nvidia.smi_trouble(said), device_file=device_file)
    told = nvidia.driver_of_smi(out)
    listed = _query("gpu", nvidia.CARD_FIELDS) or _query("gpu", nvidia.OLD_CARD_FIELDS)
    return Cards(
        Driver(told.version or kernel.version, told.cuda),
        tuple(nvidia.cards_of_csv(listed)),
        tuple(nvidia.tenants_of_csv(_query("compute-apps", nvidia.PROCESS_FIELDS))),
        device_file=device_file,
    )


def _query(what: str, fields: str) -> str:
    code, out, _ = run_limited(
        ["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits"], _SMI_LIMIT_S
    )
    return out if code == 0 else ""


def findings(probed: Probed, cards: Cards, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """torch, driver, each card and who is on it. `probed` is the probe "torch"."""
    torch = probed.facts
    found = [torch_finding(probed, cards, environment), driver_finding(torch, cards)]
    for card in cards.cards:
        found.append(card_finding(card, torch))
        told = _told_by_torch(card, torch)
        if told is not None and told["error"]:
            why = f"torch cannot compute on it: {told['error']}"
            found.append(Finding(f"card {card.index} at work", "fail", why, CUDA_TORCH))
    if cards.cards:
        found.append(tenants_finding(cards))
    return found


def torch_finding(probed: Probed, cards: Cards, environment: Mapping[str, str]) -> Finding:
    """Is torch there, and does it see the card that the driver sees?"""
    torch = probed.facts
    if torch is None:
        if probed.missing:
            return Finding("torch", "absent", probed.trouble, INSTALL_TORCH)
        return Finding("torch", "fail", probed.trouble, "pip install --force-reinstall torch")
    build = f"{torch['version']}, " + (f"built for CUDA {torch['cuda']}" if torch["cuda"] else "CPU build")
    if torch["rocm"]:
        return Finding("torch", "warn", f"{build}, ROCm {torch['rocm']}: AMD cards were not tried", CUDA_TORCH)
    if torch["available"]:
        return Finding("torch", "ok", f"{build}, sees {len(torch['cards'])} card(s)")
    if not cards.cards:
        return Finding("torch", "ok", f"{build}, no card")
    if torch["cuda"] is None:
        return Finding("torch", "fail", f"{build}: the card would stand idle", CUDA_TORCH)
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (not hidden.strip() or hidden.strip().startswith("-")):
        why = f"{build}, and CUDA_VISIBLE_DEVICES={hidden!r} hides every card"
        return Finding("torch", "fail", why, "unset CUDA_VISIBLE_DEVICES")
    return Finding("torch", "fail", f"{build}, and sees no card: {torch['said'] or 'it does not say why'}", NEW_DRIVER)


def driver_finding(torch: Mapping[str, Any] | None, cards: Cards) -> Finding:
    """The driver, and whether it is new enough for torch's CUDA."""
    driver = cards.driver
    if cards.trouble is not None:
        return Finding("nvidia driver", "fail", *cards.trouble)
    if driver.version is None:
        return Finding("nvidia driver", "ok", "none: everything runs on the CPU")
    if not cards.cards and not cards.device_file:
        why = f"{driver.version} is loaded, but no card is in this container"
        return Finding("nvidia driver", "fail", why, "docker run --gpus all …  # the container was started without")
    supported = f", CUDA up to {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda else ""
    said = f"{driver.version}{supported}"
    wanted = nvidia.version_pair(torch["cuda"]) if torch else None
    if wanted is None:
        return Finding("nvidia driver", "ok", said)
    return _against(driver, wanted, said, bool(torch and torch["available"]))


def _against(driver: Driver, wanted: tuple[int, int], said: str, works: bool) -> Finding:
    name = f"CUDA {wanted[0]}.{wanted[1]}"
    least = nvidia.LEAST_DRIVER.get(wanted[0])
    behind = driver.cuda is not None and driver.cuda[0] < wanted[0]
    if least is not None and driver.branch is not None:
        behind = driver.branch < least
    if behind:
        needs = f"{name} of torch needs {least} or newer" if least else f"torch wants {name}"
        if works:
            # A cuda-compat package, as data-centre images bring it, makes this work.
            return Finding("nvidia driver", "ok", f"{said}; {needs}, and torch computes all the same")
        install = CUDA_12_TORCH if (driver.branch or 0) >= nvidia.LEAST_DRIVER[12] else NEW_DRIVER
        return Finding("nvidia driver", "fail", f"{said}; {needs}", install)
    if driver.cuda is not None and driver.cuda < wanted:
        return Finding("nvidia driver", "ok", f"{said}; {name} of torch runs by minor-version compatibility")
    if least is None and driver.cuda is None:
        return Finding("nvidia driver", "ok", f"{said}, not compared with {name} of torch")
    return Finding("nvidia driver", "ok", f"{said}, enough for {name} of torch")


def card_finding(card: Card, torch: Mapping[str, Any] | None) -> Finding:
    """A card: memory, compute capability, and whether torch's wheel has code for it."""
    name = f"card {card.index}"
    told = _told_by_torch(card, torch)
    capability = card.capability
    if capability is None and told is not None and "capability" in told:
        capability = (told["capability"][0], told["capability"][1])
    words = [card.name]
    if card.total is not None:
        words.append(gib(card.total) + ("" if card.free is None else f", {gib(card.free)} free"))
    if capability is None:
        return Finding(name, "ok", f"{', '.join(words)}, compute capability not said")
    words.append(f"compute capability {capability[0]}.{capability[1]}")
    said = ", ".join(words)
    architectures = torch["architectures"] if torch else []
    reached = nvidia.covered(architectures, capability) if architectures else "native"
    if reached is None:
        return Finding(
            name, "fail", f"{said}; torch's wheel has no code for it ({' '.join(architectures)})", CUDA_TORCH
        )
    if capability < _LEAST_CAPABILITY:
        why = f"{said}; no bfloat16, which begins at 8.0: slow, and Unsloth is not taken"
        return Finding(name, "warn", why, "ssd-lite plan RECIPE --gpu l4  # rent a card of 8.0 or more")
    if reached == "ptx":
        return Finding(name, "warn", f"{said}; torch compiles its code for it at first use", CUDA_TORCH)
    return Finding(name, "ok", f"{said}, bfloat16")


def _told_by_torch(card: Card, torch: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    # CUDA_VISIBLE_DEVICES renumbers, so the name must agree too.
    cards = torch["cards"] if torch else []
    return next((t for t in cards if t["index"] == card.index and t.get("name", card.name) == card.name), None)


def tenants_finding(cards: Cards) -> Finding:
    """Other processes on the cards, and memory that is taken."""
    each = [card.total - card.free for card in cards.cards if card.total is not None and card.free is not None]
    taken = sum(each)
    if max(each, default=0) < _TAKEN:
        return Finding("card free", "ok", "yes" if not cards.tenants else f"{gib(taken)} taken by {_names(cards)}")
    by = _names(cards) if cards.tenants else "processes that cannot be seen from here"
    return Finding("card free", "warn", f"{gib(taken)} taken by {by}", "nvidia-smi  # then stop what holds the memory")


def _names(cards: Cards) -> str:
    return ", ".join(f"{Path(tenant.name).name} ({tenant.pid})" for tenant in cards.tenants)
