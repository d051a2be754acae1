"""Training in processes of their own: killed, stopped by a signal, or two at once, the result is that of one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_trainer import go, small
from tiny_model import save_tiny_model

from ssd_lite.atomic import is_whole
from ssd_lite.engines.training.checkpoints import newest_whole
from ssd_lite.journal import read_records

CHILD = """
import sys, time
from pathlib import Path
from test_trainer import go, small
from ssd_lite.engines.training.step_watch import StepWatch
original = StepWatch.finish_step
def slow(self, *args):
    time.sleep(float(sys.argv[2]))
    return original(self, *args)
StepWatch.finish_step = slow
from ssd_lite import interrupt
interrupt.listen()
go(Path(sys.argv[1]), small(lora_dropout=0.1))
"""

TWO = """
import os, sys
from pathlib import Path
from test_trainer import go, small
go(Path(sys.argv[1]), small(num_train_epochs=1.0, gradient_accumulation_steps=4 // int(os.environ["WORLD_SIZE"])))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model")
    return tmp_path


def child(folder: Path, wait_s: float) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(wait_s)], env=environment, stderr=subprocess.PIPE
    )


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the child did not reach step {count}: {process.communicate()[1].decode()[-2000:]}")


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(place: Path) -> None:
    """SIGKILL between two checkpoints, dropout on: adapter and log equal the uninterrupted run's."""
    whole = go(place / "whole", small(lora_dropout=0.1))
    assert whole["steps"] == 11
    process = child(place / "run", 0.15)
    wait_for_steps(place / "run", 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (place / "run" / "adapter").exists()
    assert newest_whole(place / "run" / "checkpoints") is not None
    go(place / "run", small(lora_dropout=0.1))
    log = (place / "run" / "log.txt").read_text()
    assert log.count("going on from step") == 1
    assert "replayed" not in log
    name = "adapter/adapter_model.safetensors"
    assert (place / "run" / name).read_bytes() == (place / "whole" / name).read_bytes()
    logs = [read_records(place / run / "metrics.jsonl") for run in ("run", "whole")]
    assert [(s["step"], s["loss"]) for s in logs[0]] == [(s["step"], s["loss"]) for s in logs[1]]


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_ends_with_75(place: Path) -> None:
    process = child(place / "run", 0.3)
    wait_for_steps(place / "run", 3, process)
    os.kill(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=60)[1].decode()
    assert "Stopped: Training stopped at step" in errors
    newest = newest_whole(place / "run" / "checkpoints")
    assert newest is not None
    assert len(read_records(place / "run" / "metrics.jsonl")) == int(newest.name.split("-")[1])


@pytest.mark.slow
def test_two_processes_train_like_one(place: Path) -> None:
    """Under torchrun, as `accelerate launch` does it: same samples, loss and gradient; one log, one adapter."""
    here = Path(__file__).parent
    script = place / "two.py"
    script.write_text(TWO)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(place / "two")], env=environment, capture_output=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    go(place / "one", small(num_train_epochs=1.0, gradient_accumulation_steps=4))
    logs = [read_records(place / run / "metrics.jsonl") for run in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 3
    for one, two in zip(*logs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert two["input_tokens"] == one["input_tokens"]
    assert is_whole(place / "two" / "adapter")
