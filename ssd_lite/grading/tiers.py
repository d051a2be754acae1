"""Which isolation works here: tried by canaries that misbehave on purpose, never guessed from version numbers."""

from __future__ import annotations

import json
import os
import signal
from typing import Literal, get_args

from ssd_lite import errors
from ssd_lite.errors import UserError
from ssd_lite.grading.sandbox import Job, Sandbox, SandboxError, Tier
from ssd_lite.records import Limits

Choice = Literal["auto", "bubblewrap", "landlock", "none"]
NEXT_STEP = (
    "Install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap), or grade on a machine you can lose with "
    "--unsafe-sandbox."
)
_LIMITS = Limits(cpu_s=5, wall_s=20, memory_mib=512, output_mib=1)
_DEADLY = {
    "starts a process": "import os\nos.fork()",
    "opens a network socket": "import socket\nsocket.socket(socket.AF_INET)",
    "signals its parent": "import os\nos.kill(os.getppid(), 0)",
}
_QUIET = """
import os
try:
    os.close(os.open({path!r}, os.O_RDONLY)); print("reads a host file")
except OSError: pass
try:
    os.close(os.open({path!r}, os.O_WRONLY)); print("writes a host file")
except OSError: pass
for name in os.environ:
    if name not in {names!r}: print("sees the environment")
"""
_NAMES = ("PYTHONHASHSEED", "PYTHONUTF8", "LANG", "PATH", "HOME", "PWD", "LC_CTYPE")


def choose_tier(choice: Choice) -> tuple[Tier, Sandbox, dict[str, str]]:
    """The strongest tier that `choice` allows and that holds here, its first sandbox, and why others were refused.

    Raises UserError where none holds.
    """
    if choice not in get_args(Choice):
        raise UserError(
            f"unknown sandbox {choice!r}.", where="--sandbox", next_step=f"Use {', '.join(get_args(Choice))}."
        )
    refused: dict[str, str] = {}
    tiers: tuple[Tier, ...] = ("bubblewrap", "landlock") if choice == "auto" else (choice,)
    for tier in tiers:
        try:
            return tier, started(tier), refused
        except SandboxError as error:
            refused[tier] = str(error)
    reasons = "; ".join(f"{tier}: {reason}" for tier, reason in refused.items())
    raise UserError(f"no sandbox holds here ({reasons}).", where="--sandbox", next_step=NEXT_STEP)


def started(tier: Tier) -> Sandbox:
    """A sandbox of `tier` that holds against the canaries. Raises SandboxError."""
    sandbox = Sandbox(tier)
    try:
        sandbox.wait_ready()
        leak = None if tier == "none" else _leak(sandbox)
        if leak is not None:
            raise SandboxError(f"a program in it {leak}")
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def _leak(sandbox: Sandbox) -> str | None:
    """The first thing a canary could do that it must not."""
    quiet = _QUIET.format(path=os.path.realpath(errors.__file__), names=_NAMES)
    outcome = sandbox.run(_job(quiet))
    if outcome.status or outcome.lost or outcome.output:
        return outcome.output.decode("utf-8", "replace").strip().split("\n")[0] or "does not run at all"
    for action, text in _DEADLY.items():
        outcome = sandbox.run(_job(text))
        if outcome.lost or not os.WIFSIGNALED(outcome.status) or os.WTERMSIG(outcome.status) != signal.SIGSYS:
            return action
    return None


def _job(text: str) -> Job:
    body = {"job": "stdin", "before": [], "prelude": False, "program": text}
    return Job(json.dumps(body).encode("ascii"), _LIMITS)
