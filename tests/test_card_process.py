"""The tests that need a card, as they are without one: collected, skipped with the reason, and a dry run of all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from card_jobs import STEPS, Jobs, training_settings
from card_report import Training, loss_complaints, resume_complaints

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


def card_tests(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pytest tests/gpu` where no card is visible."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSD_LITE_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests/gpu"],
        cwd=ROOT, env={**kept, "CUDA_VISIBLE_DEVICES": "", **environment}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.mark.slow
def test_without_a_card_all_are_skipped_and_say_why() -> None:
    done = card_tests("-m", "gpu")
    assert done.returncode == 0, done.stdout
    assert "there is no CUDA card" in done.stdout
    assert "passed" not in done.stdout
    assert "failed" not in done.stdout


def test_where_nothing_may_be_skipped_they_fail() -> None:
    """So a job that promises a card cannot pass without one."""
    done = card_tests("-m", "gpu", SSD_LITE_NO_SKIPS="1")
    assert done.returncode == 1
    assert "skipped in a place where no test may be" in done.stdout


def test_they_are_left_out_unless_asked_for() -> None:
    done = card_tests()
    assert done.returncode == 5, done.stdout
    assert "deselected" in done.stdout


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """A random model of two layers."""
    from tiny_models import save_tiny

    return Jobs("tiny", save_tiny(tmp_path / "tiny"), tmp_path, length=48, threads=1)


@pytest.mark.slow
def test_a_dry_run_passes_and_prints_its_block(jobs: Jobs) -> None:
    """Every test but those of Unsloth, in processes of their own on the CPU."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("llama_cpp")
    settings = {"SSD_LITE_CARD": "cpu", "SSD_LITE_CARD_MODEL": str(jobs.weights), "SSD_LITE_CARD_LENGTH": "64"}
    done = card_tests("-m", "gpu", **settings)
    assert done.returncode == 0, done.stdout
    assert "DRY RUN" in done.stdout
    assert "Unsloth cannot be taken here: there is no CUDA card" in done.stdout
    for row in ("| peft lora |", "| peft qlora |", "| hf, 32 x (8 + 16) |", "Whole run, peft qlora, merge check"):
        assert row in done.stdout


@pytest.mark.slow
def test_another_training_is_told_apart(jobs: Jobs) -> None:
    """The same training twice, stopped and gone on with once; and one whose adapter counts four times as much."""
    rate = 5e-3
    settings = training_settings("lora", jobs.length, learning_rate=rate)
    whole = Training("peft", settings, jobs.train("peft", "lora", learning_rate=rate))
    assert len(whole.losses) == STEPS
    broken = Training("peft", settings, jobs.train_broken("peft", "lora", 5, learning_rate=rate))
    assert resume_complaints(whole, broken, 5) == []
    assert loss_complaints(whole, broken) == []
    other = Training("peft", settings, jobs.train("peft", "lora", learning_rate=rate, lora_alpha=128))
    assert any("last loss" in complaint for complaint in loss_complaints(whole, other))
