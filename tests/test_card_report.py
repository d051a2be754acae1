"""The judgements and the block of the tests that need a card, checked without one."""

from __future__ import annotations

from typing import Any

import pytest
from card_jobs import METHODS, training_settings
from card_report import (
    ALLOCATOR_BYTES,
    CONTEXT_BYTES,
    FIRST_LOSS,
    PLAN_SLACK,
    Findings,
    Sampling,
    Training,
    block,
    course_complaints,
    loss_complaints,
    memory_complaints,
    outside_note,
    resume_complaints,
    sampling_speed,
    standing,
    training_speed,
    visible,
)

from ssd_lite.plan.cards import cards
from ssd_lite.plan.shapes import packaged_shape
from ssd_lite.plan.training_memory import optimiser_bytes, trained_parameters

GIB, LENGTH = 2**30, 1024
SHAPE = packaged_shape("Qwen/Qwen3-4B-Instruct-2507")
FALLING = [3.0, 2.8, 2.6, 2.4, 2.2, 2.0]


def training(engine: str = "peft", method: str = "lora", losses: list[float] = FALLING, **answer: Any) -> Training:
    steps = [
        # The first two are slow: kernels are made then.
        {"step": number, "loss": loss, "input_tokens": 3000, "seconds": 30.0 if number <= 2 else 1.5}
        for number, loss in enumerate(losses, start=1)
    ]
    whole = {"steps": steps, "memory": None, "said": [], **answer}
    return Training(engine, training_settings(method, LENGTH), whole)


def sampled(**answer: Any) -> Sampling:
    return Sampling(8, 128, 256, {"tokens": 2048, "seconds": 4.0, "memory": None, **answer})


def scaled(factor: float, losses: list[float] = FALLING) -> list[float]:
    return [factor * loss for loss in losses]


def test_equal_losses_raise_no_complaint() -> None:
    assert loss_complaints(training(), training("unsloth", losses=scaled(1 + 0.9 * FIRST_LOSS))) == []


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (scaled(1 + 1.1 * FIRST_LOSS), "first loss"),
        (scaled(1 - 1.1 * FIRST_LOSS), "first loss"),
        ([float("nan")] * 6, "first loss"),
        ([*FALLING[:3], 2.5, 2.4, 2.3], "last loss"),
        (FALLING[:5], "5 steps instead of 6"),
    ],
)
def test_other_losses_do(losses: list[float], words: str) -> None:
    assert any(words in complaint for complaint in loss_complaints(training(), training("unsloth", losses=losses)))


def test_a_loss_that_does_not_fall_is_seen() -> None:
    assert course_complaints(training()) == []
    assert "does not fall" in course_complaints(training(losses=[3.0] * 6))[0]
    assert "does not fall" in course_complaints(training(losses=[3.0, *[float("nan")] * 5]))[0]


def test_a_resumed_training_must_be_the_whole_one() -> None:
    said = ["train: going on from step 3 of 6"]
    assert resume_complaints(training(), training(said=said), 3) == []
    assert "did not go on" in resume_complaints(training(), training(), 3)[0]
    assert "did not go on" in resume_complaints(training(), training(said=said), 4)[0]
    assert "other steps" in resume_complaints(training(), training(losses=FALLING[:4], said=said), 3)[0]
    assert "differs by 2.0 %" in resume_complaints(training(), training(losses=scaled(1.02), said=said), 3)[0]


def test_memory_is_held_against_the_plan_without_the_context() -> None:
    assert SHAPE is not None
    terms = training().terms(SHAPE, LENGTH)
    assert visible(terms) == sum(terms.values()) - CONTEXT_BYTES > 7 * GIB
    limit = int(PLAN_SLACK * visible(terms)) + ALLOCATOR_BYTES
    assert memory_complaints("peft", limit, terms) == []
    assert "peft took" in memory_complaints("peft", limit + GIB // 100, terms)[0]


def test_what_stands_between_two_steps() -> None:
    """A paged optimiser's state is not torch's; all else of AdamW's is."""
    assert SHAPE is not None
    lora, qlora = training(method="lora"), training(method="qlora")
    state = optimiser_bytes(lora.settings, trained_parameters(SHAPE, lora.settings))
    terms = lora.terms(SHAPE, LENGTH)
    assert standing(terms, lora.settings) == terms["weights"] + terms["adapter"] + state
    terms = qlora.terms(SHAPE, LENGTH)
    assert standing(terms, qlora.settings) == terms["weights"] + terms["adapter"]
    assert terms["optimiser"] > 0


def test_the_plan_is_for_the_largest_micro_batch() -> None:
    assert SHAPE is not None
    short, long = (sum(training().terms(SHAPE, length).values()) for length in (LENGTH, 4 * LENGTH))
    assert long > short


def test_speed_leaves_out_the_first_steps() -> None:
    assert training().tokens_per_s == pytest.approx(2000)
    assert sampled().tokens_per_s == pytest.approx(512)


def test_speeds_of_the_plan_follow_the_card() -> None:
    assert SHAPE is not None
    slow, fast = cards()["l4"], cards()["h100"]
    for speed in (
        lambda machine: training_speed(training(), SHAPE, LENGTH, machine),
        lambda machine: sampling_speed(sampled(), SHAPE, machine),
    ):
        assert 0 < speed(slow)[0] < speed(slow)[1]
        assert speed(slow)[0] < speed(fast)[0]


def measured() -> Findings:
    """What a card could give; made up, to see where each figure goes."""

    class Row:
        case, loss, loss_limit, gradient, gradient_limit, passed = "qwen3-qlora", 1e-3, 2e-3, 4e-2, 2e-2, False

    memory = {"allocated": 7 * GIB, "reserved": 9 * GIB, "outside": GIB, "standing": 5 * GIB}
    found = Findings(
        facts={
            "card": "NVIDIA GeForce RTX 4090", "card_bytes": 24 * GIB, "capability": "8.9", "driver": "570.1",
            "torch": "2.13.0", "cuda": "12.8", "python": "3.11.7", "unsloth": "2026.10.7", "model": "some/model",
        },
        shape=SHAPE,
        length=LENGTH,
        proof=[Row()],
        trainings=[training(engine, method, memory=memory) for engine in ("peft", "unsloth") for method in METHODS],
        samplings=[sampled(memory=memory)],
        notes=["a note"],
    )  # fmt: skip
    found.notes += outside_note([one.answer for one in found.trainings])
    return found


def test_the_block_says_all_that_was_measured_and_on_what() -> None:
    text = block(measured())
    for words in (
        "NVIDIA GeForce RTX 4090, 24.0 GiB, compute 8.9, driver 570.1", "unsloth 2026.10.7", "some/model",
        "| qwen3-qlora | 1.0e-03 / 2.0e-03 | 4.0e-02 / 2.0e-02 | **no** |", "| peft lora | 3.000 to 2.200 | 2,000 / ",
        "| unsloth qlora |", "| 5,120 / ", "| 9,216 / ", "activations ", "| hf, 8 x (128 + 256) | 512 / ", "kv_cache ",
        "a note", "1,024 to 1,024 MiB",
    ):  # fmt: skip
        assert words in text
    assert "DRY RUN" not in text


def test_the_block_shows_the_plan_beside_each_figure() -> None:
    assert SHAPE is not None
    found = measured()
    terms = found.trainings[0].terms(SHAPE, LENGTH)
    row = next(line for line in block(found).splitlines() if line.startswith("| peft lora"))
    assert f"9,216 / {visible(terms) / 2**20:,.0f} |" in row
    assert f"5,120 / {standing(terms, found.trainings[0].settings) / 2**20:,.0f} |" in row
    assert f"weights {terms['weights'] / 2**20:,.0f}" in row


def test_a_dry_run_says_so_and_an_unknown_card_has_no_speed_of_the_plan() -> None:
    found = measured()
    found.dry = True
    assert block(found).startswith("DRY RUN")
    found.facts["card"] = "NVIDIA TITAN V"
    assert "| peft lora | 3.000 to 2.200 | 2,000 | 5,120 / " in block(found)


def test_a_block_of_nothing_is_still_a_block() -> None:
    assert block(Findings()).startswith("Card: none")
