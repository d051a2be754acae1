"""The comparison of engines itself, on the PEFT path alone: equal is equal, and a difference is seen and named."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("peft")
import torch
from safetensors.torch import save_file

from ssd_lite.engines.training.proof_model import save_proof_model
from ssd_lite.engines.training.unsloth_proof import FAMILIES, Case, Row, batch, cases, differences, run

LAUNCH = (sys.executable, "-m", "ssd_lite.engines.training.unsloth_proof")


def saved(path: Path, loss: float, **gradients: list[float]) -> Path:
    save_file({"loss": torch.tensor([loss]), **{name: torch.tensor(g) for name, g in gradients.items()}}, path)
    return path


def test_the_largest_relative_difference_is_named(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", 2.0, a=[3.0, 4.0], b=[1.0, 0.0])
    other = saved(tmp_path / "other", 2.5, a=[3.0, 4.5], b=[1.0, 0.3])
    assert differences(one, one)[:2] == (0.0, 0.0)
    assert differences(one, other) == (0.5, pytest.approx(0.3), "b")


def test_what_is_no_number_or_another_tensor_does_not_pass(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", 2.0, a=[3.0], b=[1.0])
    loss, gradient, tensor = differences(one, saved(tmp_path / "nan", 2.0, a=[float("nan")], b=[9.0]))
    assert tensor == "a"
    assert not Row("x", loss, 1.0, gradient, 1.0, tensor).passed
    assert not Row("x", float("nan"), 1.0, 0.0, 1.0, "a").passed
    assert Row("x", 0.1, 1.0, 0.1, 1.0, "a").passed
    assert "FAILED" in Row("x", 2.0, 1.0, 0.1, 1.0, "a").text()
    with pytest.raises(RuntimeError, match="trains other tensors"):
        differences(one, saved(tmp_path / "fewer", 2.0, a=[3.0]))


def test_cases_have_both_families_both_methods_and_soft_targets() -> None:
    found = cases()
    assert {(case.family, case.method) for case in found} == {(f, m) for f in FAMILIES for m in ("lora", "qlora")}
    assert {case.method for case in found if case.soft} == {"lora", "qlora"}
    soft, hard = batch(Case("llama", "lora", soft=True)), batch(Case("llama", "lora"))
    assert soft["target_probs"].shape[1] == 4
    assert soft["target_probs"].sum(dim=1).allclose(torch.ones(()))
    assert hard["target_ids"].shape == (56, 1)
    assert hard["input_ids"].shape == (3, 29)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*IndexError|ended with 1:(.|\n)*Error"):
        run([*LAUNCH, "peft", "{}", "nowhere", "out"])


@pytest.mark.slow
def test_the_peft_path_agrees_with_itself_and_a_wrong_alpha_does_not(tmp_path: Path) -> None:
    save_proof_model(tmp_path / "qwen3", "qwen3")
    outs = {}
    for alpha in (32, 34):
        outs[alpha] = tmp_path / f"{alpha}.safetensors"
        case = Case("qwen3", "lora", soft=True, alpha=alpha)
        run([*LAUNCH, "peft", "--exact", json.dumps(asdict(case)), str(tmp_path / "qwen3"), str(outs[alpha])])
    again = tmp_path / "again.safetensors"
    case = Case("qwen3", "lora", soft=True)
    run([*LAUNCH, "peft", json.dumps(asdict(case)), str(tmp_path / "qwen3"), str(again)])
    assert differences(outs[32], again)[:2] == (0.0, 0.0)
    assert differences(outs[32], outs[34])[1] > 0.01
