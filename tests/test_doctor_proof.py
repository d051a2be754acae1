"""The proof of Unsloth as doctor shows it: rows that hold and rows that do not, a crash, and one that hangs.

The stand-in for a training process writes gradients by itself; the comparison, its limits and its rows are the real
ones (`unsloth_proof.prove`). What Unsloth really computes is tested in test_unsloth_equivalence.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ssd_lite.stages.checkup.proof import case_finding, proof_findings

STAND_IN = """
import json, sys, time
import numpy as np
from safetensors.numpy import save_file
engine, *rest = sys.argv[1:]
case, model, out = (part for part in rest if part != "--exact")
case, how = json.loads(case), {how!r}
if how == "crash" and engine == "unsloth":
    sys.exit("the kernel does not compile")
if how == "hang":
    time.sleep(600)
gradient = np.linspace(1.0, 2.0, 64, dtype=np.float32)
if how == "wrong" and engine == "unsloth" and case["family"] == "qwen3":
    gradient *= 1.1
save_file({{"layer.lora_A": gradient, "loss": np.array([6.25], np.float32)}}, out)
"""


def launcher(folder: Path, how: str) -> list[str]:
    script = folder / "stand_in.py"
    script.write_text(STAND_IN.format(how=how), encoding="utf-8")
    return [sys.executable, str(script)]


def test_words_of_a_case() -> None:
    row = {
        "case": "llama-qlora", "loss": 1e-4, "loss_limit": 2e-3, "gradient": 0.5, "gradient_limit": 0.02,
        "tensor": "layers.0.lora_B", "passed": False,
    }  # fmt: skip
    wrong, right = case_finding(row), case_finding({**row, "gradient": 0.001, "passed": True})
    assert (wrong.status, wrong.name) == ("fail", "unsloth llama-qlora")
    assert wrong.found.endswith("gradients by 0.5 (limit 0.02), worst at layers.0.lora_B")
    assert right.status == "ok"


@pytest.mark.slow
def test_rows_come_one_by_one_and_a_wrong_gradient_fails(tmp_path: Path) -> None:
    told: list[str] = []
    found = proof_findings(told.append, 240, launcher(tmp_path, "wrong"))
    assert len(found) == len(told) == 6
    assert {one.name: one.status for one in found} == {
        "unsloth llama-lora": "ok", "unsloth llama-qlora": "ok", "unsloth qwen3-lora": "fail",
        "unsloth qwen3-qlora": "fail", "unsloth llama-lora-soft": "ok", "unsloth qwen3-qlora-soft": "fail",
    }  # fmt: skip


@pytest.mark.slow
def test_process_that_fails_says_why(tmp_path: Path) -> None:
    found = proof_findings(lambda line: None, 240, launcher(tmp_path, "crash"))
    assert [(one.name, one.status) for one in found] == [("unsloth proof", "fail")]
    assert "the kernel does not compile" in found[0].found


def test_proof_that_hangs_is_ended_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    found = proof_findings(lambda line: None, 2, launcher(tmp_path, "hang"))
    assert not list(temporary.iterdir())
    assert [(one.name, one.found) for one in found] == [("unsloth proof", "did not end within 2 s")]
