"""On a CUDA card: Unsloth against PEFT, memory against the plan, resuming, a whole run, and speeds. See conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from card_jobs import METHODS, STEPS, Jobs, training_settings, whole_run
from card_report import (
    Findings,
    Sampling,
    Training,
    course_complaints,
    loss_complaints,
    memory_complaints,
    resume_complaints,
)

pytestmark = pytest.mark.gpu
ENGINES = ("peft", "unsloth")
of_each_engine = pytest.mark.parametrize("engine", ENGINES, indirect=True)
by_each_method = pytest.mark.parametrize("method", METHODS)


def trained(jobs: Jobs, engine: str, method: str) -> Training:
    """The training of an engine and a method, made once a session."""
    return Training(engine, training_settings(method, jobs.length), jobs.train(engine, method))


def test_one_step_of_unsloth_has_the_loss_and_gradients_of_peft(
    findings: Findings, unsloth: str, tmp_path: Path
) -> None:
    """Tiny Llama and Qwen3 in bfloat16, 16-bit and NF4, both kinds of targets, Unsloth's real kernels."""
    from ssd_lite.engines.training.unsloth_proof import cases, prove

    findings.proof = list(prove(tmp_path))
    assert len(findings.proof) == len(cases())
    assert [row.case for row in findings.proof if not row.passed] == []


@by_each_method
@of_each_engine
def test_a_training_learns_within_the_memory_of_its_plan(
    findings: Findings, jobs: Jobs, engine: str, method: str
) -> None:
    one = trained(jobs, engine, method)
    findings.trainings.append(one)
    complaints = course_complaints(one)
    if not findings.dry:
        assert findings.shape is not None
        terms = one.terms(findings.shape, jobs.length)
        complaints += memory_complaints(f"{engine} {method}", one.answer["memory"]["reserved"], terms)
    assert complaints == []


@by_each_method
def test_losses_of_unsloth_are_those_of_peft(findings: Findings, jobs: Jobs, unsloth: str, method: str) -> None:
    assert loss_complaints(trained(jobs, "peft", method), trained(jobs, unsloth, method)) == []


@of_each_engine
def test_stopped_by_a_signal_it_goes_on_as_if_it_had_not(findings: Findings, jobs: Jobs, engine: str) -> None:
    after = STEPS // 2 - 1
    broken = Training(engine, training_settings("qlora", jobs.length), jobs.train_broken(engine, "qlora", after))
    assert resume_complaints(trained(jobs, engine, "qlora"), broken, after) == []


@of_each_engine
def test_a_whole_run_trains_by_the_engine_and_merges_what_was_trained(
    findings: Findings, jobs: Jobs, engine: str, tmp_path: Path
) -> None:
    settings = [f"train.engine={engine}", "train.method=qlora", f"train.optim={METHODS['qlora']}"]
    # Into the base that was trained on, so that the check sees the merge alone and not the error of NF4.
    settings.append("merge.base=dequantised")
    stages = whole_run(tmp_path / "run", str(jobs.weights), settings)["stages"]
    summaries = {name: stage["summary"] for name, stage in stages.items()}
    assert summaries["train"]["engine"] == engine
    check = summaries["merge"]["check"]
    findings.notes.append(f"Whole run, {engine} qlora, merge check: {check}.")
    assert check.get("bad") is False, check


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_sampling_stays_within_the_memory_of_its_plan(findings: Findings, jobs: Jobs, batch: int) -> None:
    prompt, new = jobs.length // 8, jobs.length // 4
    one = Sampling(batch, prompt, new, jobs.sample(batch, prompt, new))
    findings.samplings.append(one)
    assert one.answer["tokens"] == batch * new
    if not findings.dry:
        assert findings.shape is not None
        reserved, terms = one.answer["memory"]["reserved"], one.terms(findings.shape)
        assert memory_complaints(f"a batch of {batch}", reserved, terms) == []
