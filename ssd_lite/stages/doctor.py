"""The stage that looks a machine over: every finding in one list, heavy checks in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ssd_lite.engines.training.engine_choice import Machine, choose_engine
from ssd_lite.engines.weights.model_cache import cache_folder
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe, Train
from ssd_lite.stages.checkup import cards as doctor_cards
from ssd_lite.stages.checkup import hub as doctor_hub
from ssd_lite.stages.checkup import machine as doctor_machine
from ssd_lite.stages.checkup import packages as doctor_packages
from ssd_lite.stages.checkup import proof as doctor_proof
from ssd_lite.stages.checkup.child import DEFAULT_LIMIT_S, Probed, probe
from ssd_lite.stages.checkup.finding import Finding, Status
from ssd_lite.stages.checkup.recipe import recipe_findings, with_needs
from ssd_lite.stages.checkup.versions import installed
from ssd_lite.stages.recipe_needs import runs_programs

BUBBLEWRAP = "sudo apt-get install bubblewrap"
_UNSAFE = "--unsafe-sandbox, on a machine you can lose"
# Ubuntu 24.04 denies what bubblewrap needs; Docker's default profile does too, and there the host decides.
_USERNS = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0  # on the host of a container"
# Package → the module it is imported by, for what the self-tests load.
_MODULES = {"torch": "torch", "bitsandbytes": "bitsandbytes", "llama-cpp-python": "llama_cpp"}


@dataclass(frozen=True)
class Question:
    """What is asked beside the machine: a recipe to hold it against (`typed`: as the user named it), whether to prove
    Unsloth, where runs go, and how long a self-test may take.
    """

    recipe: Recipe | None = None
    typed: str = ""
    prove_unsloth: bool = False
    runs: Path = Path("runs")
    limit_s: float = DEFAULT_LIMIT_S


def examine(question: Question, tell: Callable[[str], None] = lambda line: None) -> list[Finding]:
    """All findings, in the order of a run. Changes nothing but for the cache folder, which is made if need be.

    `tell` gets a line each time a part of a long proof ends.
    """
    # Before the probes, whose own memory on the card would count as taken.
    cards = doctor_cards.ask_driver()
    found = [*doctor_machine.machine_findings(), *_disks(question.runs)]
    probes = _probe_all(question)
    torch = probes["torch"] or Probed(None, "not installed; needed for training", missing=True)
    has_card = bool(cards.cards) or bool(torch.facts and torch.facts["available"])
    found += doctor_cards.findings(torch, cards)
    found += doctor_packages.package_findings()
    found += [
        doctor_packages.bitsandbytes_finding(probes["bitsandbytes"], installed("bitsandbytes")),
        doctor_packages.unsloth_finding(has_card=has_card),
        doctor_packages.llama_finding(probes["llama"], installed("llama-cpp-python"), has_card),
        sandbox_finding(probes["sandbox"], question.recipe),
        doctor_hub.token_finding(os.environ),
        doctor_hub.reach_finding(probes["hub"], os.environ),
        engine_finding(torch, question.recipe.train if question.recipe else Train()),
    ]
    if question.recipe is not None:
        found = with_needs(found, question.recipe, has_card)
        found += recipe_findings(question.recipe, question.typed, cards, question.runs)
    if question.prove_unsloth:
        possible = engine_finding(torch, Train(method="qlora", engine="unsloth"))
        refused = replace(possible, name="unsloth proof", status="fail")
        found += doctor_proof.proof_findings(tell) if possible.status == "ok" else [refused]
    return found


def _disks(runs: Path) -> Iterator[Finding]:
    least = doctor_machine.QUICKSTART_DISK
    yield doctor_machine.disk_finding("disk for runs", runs, least, "ssd-lite run … --out /a/larger/disk/run")
    moved = "export SSD_LITE_CACHE=/a/larger/disk"
    try:
        yield doctor_machine.disk_finding("model cache", cache_folder(), least, moved)
    except UserError as error:
        yield Finding("model cache", "fail", f"{error.where}: {error.what}", moved)
    hub = doctor_hub.hub_cache(os.environ)
    yield doctor_machine.disk_finding("hub cache", hub, least, "export HF_HOME=/a/larger/disk/huggingface")
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        yield Finding("tmp", "fail", f"{error}", "export TMPDIR=/a/larger/disk")
        return
    yield doctor_machine.disk_finding("tmp", folder, doctor_machine.TMP_DISK, "export TMPDIR=/a/larger/disk")


def _probe_all(question: Question) -> dict[str, Probed | None]:
    """Every self-test whose library is there, at the same time; None for one that was not run."""
    wanted = {
        "torch": _there("torch"),
        "bitsandbytes": _there("bitsandbytes"),
        "llama": _there("llama-cpp-python"),
        "sandbox": question.recipe is None or runs_programs(question.recipe),
        "hub": not doctor_hub.offline(os.environ),
    }
    # A name service that does not answer takes long, and then nothing is lost by not waiting.
    limits, stop = {"hub": min(question.limit_s, 10.0)}, threading.Event()
    words = {"sandbox": [question.recipe.evaluate.sandbox]} if question.recipe is not None else {}
    with ThreadPoolExecutor(len(wanted)) as pool:
        running: dict[str, Future[Probed]] = {
            name: pool.submit(probe, name, limits.get(name, question.limit_s), stop, words.get(name, []))
            for name, run in wanted.items()
            if run
        }
        try:
            return {name: running[name].result() if name in running else None for name in wanted}
        finally:
            # After a Ctrl-C, whose signal the self-tests do not get.
            stop.set()


def _there(package: str) -> bool:
    return installed(package) is not None or importlib.util.find_spec(_MODULES[package]) is not None


def sandbox_finding(probed: Probed | None, recipe: Recipe | None = None) -> Finding:
    """The tier in which programs are graded here, by canaries that misbehave on purpose; `recipe` may say which."""
    name = "sandbox"
    if recipe is not None and not runs_programs(recipe):
        return Finding(name, "ok", "not needed: the recipe runs no programs")
    if probed is None or probed.facts is None:
        why = probed.trouble if probed is not None else "not tried"
        return Finding(name, "fail", f"{why.rstrip('.')}; nothing can be graded", f"{BUBBLEWRAP}  # or {_UNSAFE}")
    tier, refused = probed.facts["tier"], probed.facts["refused"]
    if tier == "bubblewrap":
        return Finding(name, "ok", "bubblewrap, the strongest tier")
    if tier == "none":
        why = "none: the model's programs run as you do, with your files and your network"
        return Finding(name, "warn", why, "ssd-lite run … --set evaluate.sandbox=auto")
    why = "; ".join(f"{other}: {reason}" for other, reason in refused.items()) or "evaluate.sandbox asks for it"
    said = f"{tier}: programs see process ids and file names of the host ({why})"
    if not refused:
        return Finding(name, "warn", said, "ssd-lite run … --set evaluate.sandbox=auto")
    return Finding(name, "warn", said, BUBBLEWRAP if "is not installed" in why else _USERNS)


def engine_finding(torch: Probed, settings: Train) -> Finding:
    """What `train.engine` takes here, and why."""
    name = "train.engine"
    if torch.facts is None:
        status: Status = "absent" if torch.missing else "fail"
        return Finding(name, status, "none, for want of torch", doctor_cards.INSTALL_TORCH)
    machine = Machine(
        torch.facts["available"],
        any(card.get("bf16", False) for card in torch.facts["cards"][:1]),
        installed("unsloth"),
        installed("unsloth_zoo"),
    )
    try:
        choice = choose_engine(settings, machine)
    except UserError as error:
        install = f"  # or: {doctor_packages.INSTALL_UNSLOTH}" if "installed" in error.what else ""
        return Finding(name, "fail", error.what, f"ssd-lite run … --set train.engine=peft{install}")
    return Finding(name, "ok", f"{settings.engine} takes {choice.engine}: {choice.reason}")
