"""The tests that need a card: skipped without one, and what they measured printed at the end as a block to paste.

    pytest -m gpu tests/gpu                                       # packaged 135M model, no network
    HF_HUB_OFFLINE=0 SSD_LITE_CARD_MODEL=Qwen/Qwen3-4B-Instruct-2507 pytest -m gpu tests/gpu

SSD_LITE_CARD_LENGTH is the longest row in tokens (1024). SSD_LITE_CARD=cpu is a dry run: the same tests without a card,
in float32, where nothing of the card is checked or measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from card_jobs import Jobs
from card_report import Findings, block, outside_note

HERE = Path(__file__).parent
DRY = os.environ.get("SSD_LITE_CARD") == "cpu"
FINDINGS = Findings(dry=DRY)


def _card() -> bool:
    """Whether there is a CUDA card; False too where torch is not installed."""
    from ssd_lite.engines.devices import has_cuda

    return has_cuda()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a card every test here is skipped, and says why."""
    mine = [item for item in items if HERE in Path(item.path).parents]
    if mine and not DRY and not _card():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA card (SSD_LITE_CARD=cpu makes a dry run)"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the block, if any test measured something."""
    if FINDINGS.facts:
        terminalreporter.section("measured on this card, to paste")
        terminalreporter.write_line(block(FINDINGS))


@pytest.fixture(scope="session")
def findings(jobs: Jobs) -> Iterator[Findings]:
    """What the block is made of."""
    from ssd_lite.engines.weights.model_folder import read_json
    from ssd_lite.plan.shapes import from_config

    FINDINGS.facts = jobs.facts()
    FINDINGS.shape = from_config(read_json(jobs.weights / "config.json"), str(jobs.weights))
    FINDINGS.length = jobs.length
    yield FINDINGS
    FINDINGS.notes += outside_note([one.answer for one in (*FINDINGS.trainings, *FINDINGS.samplings)])


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Jobs:
    """The model of SSD_LITE_CARD_MODEL, or the packaged one, and a folder to work in."""
    from ssd_lite.engines.model_source import hf_folder, resolve_model

    name = os.environ.get("SSD_LITE_CARD_MODEL")
    length = int(os.environ.get("SSD_LITE_CARD_LENGTH", "1024"))
    folder = tmp_path_factory.mktemp("card")
    if name is None:
        packaged = request.getfixturevalue("packaged_model")
        return Jobs(packaged.name, packaged.folder, folder, length, 1 if DRY else None)
    return Jobs(name, hf_folder(resolve_model(name)), folder, length, 1 if DRY else None)


@pytest.fixture
def unsloth() -> str:
    """The engine unsloth; the test is skipped where it cannot be taken, with the reason that the recipe would give."""
    from ssd_lite.engines.training.engine_choice import Machine, choose_engine
    from ssd_lite.recipe import Train

    chosen = choose_engine(Train(), Machine.here())
    if chosen.engine != "unsloth":
        pytest.skip(f"Unsloth cannot be taken here: {chosen.reason}")
    return chosen.engine


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """An engine by name; unsloth only where it can be taken."""
    name: str = request.param
    return request.getfixturevalue("unsloth") if name == "unsloth" else name
