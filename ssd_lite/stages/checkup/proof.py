"""Unsloth proved on this card: its losses and gradients against PEFT's, a finding for each case.

`python -m ssd_lite.stages.checkup.proof [LAUNCH …]` runs the cases and prints one JSON line each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssd_lite.run_lock import die_with_parent
from ssd_lite.stages.checkup.finding import Finding

# Eighteen processes that import PyTorch; six of them import Unsloth, whose kernels are compiled at first use.
LIMIT_S = 1800.0
_PEFT = "ssd-lite run … --set train.engine=peft  # and report the line above"


def proof_findings(tell: Callable[[str], None], limit_s: float = LIMIT_S, launch: Sequence[str] = ()) -> list[Finding]:
    """Run the cases in processes of their own; `tell` gets a line as each ends. `launch` as `prove` takes it."""
    with tempfile.TemporaryDirectory(prefix="ssd-lite-proof-", ignore_cleanup_errors=True) as place:
        return _findings(tell, limit_s, launch, place)


def _findings(tell: Callable[[str], None], limit_s: float, launch: Sequence[str], place: str) -> list[Finding]:
    """What the child says, whose temporary files go to `place`: it may be killed, and then cleans nothing."""
    child = subprocess.Popen(
        [sys.executable, "-m", "ssd_lite.stages.checkup.proof", *launch],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": place},
    )  # fmt: skip
    late = threading.Event()

    def end_it() -> None:
        late.set()
        _kill(child)

    timer = threading.Timer(limit_s, end_it)
    timer.start()
    found = []
    try:
        said: list[str] = []
        # Drained beside the answers: a full pipe would stop the child.
        errors = threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True)
        errors.start()
        for line in child.stdout or ():
            found.append(case_finding(json.loads(line)))
            tell(f"{found[-1].status}: {found[-1].name}: {found[-1].found}")
        code = child.wait()
        errors.join(5)
    finally:
        timer.cancel()
        if child.poll() is None:
            _kill(child)
    if late.is_set():
        found.append(Finding("unsloth proof", "fail", f"did not end within {limit_s:.0f} s", _PEFT))
    elif code != 0:
        found.append(Finding("unsloth proof", "fail", _reason(said, code), _PEFT))
    return found


def case_finding(row: dict[str, Any]) -> Finding:
    """A case of the proof: differences to float32 and their limits (`unsloth_proof.Row`)."""
    name = f"unsloth {row['case']}"
    words = (
        f"loss off by {row['loss']:.2g} (limit {row['loss_limit']:.2g}), "
        f"gradients by {row['gradient']:.2g} (limit {row['gradient_limit']:.2g})"
    )
    if row["passed"]:
        return Finding(name, "ok", words)
    return Finding(name, "fail", f"{words}, worst at {row['tensor']}", _PEFT)


def _reason(said: Sequence[str], code: int) -> str:
    lines = [line.strip() for line in said if line.strip()]
    return lines[-1][:300] if lines else f"ended with {code}"


def _kill(child: subprocess.Popen[str]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(launch: Sequence[str]) -> None:
    """Print a JSON line for each case, as it ends."""
    die_with_parent()
    from ssd_lite.engines.training.unsloth_proof import prove

    options = {"launch": list(launch)} if launch else {}
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="ssd-lite-proof-") as folder:
        for row in prove(Path(folder), **options):
            print(json.dumps({**asdict(row), "passed": row.passed}), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
