"""Exporting takes the same memory at any size: a model with the widths and the vocabulary of Qwen3-8B."""

from __future__ import annotations

from pathlib import Path

import pytest
from big_model import measure, write_big_adapter, write_big_model

pytest.importorskip("llama_cpp")


@pytest.mark.slow
def test_a_model_of_8b_widths_streams_through_little_memory(tmp_path: Path) -> None:
    """Its embedding alone has 1,187 MiB in bfloat16, and two of them and a layer lie in the file."""
    count = write_big_model(tmp_path / "base", "qwen3-8b", layers=1, hole=True)
    write_big_adapter(tmp_path / "adapter", tmp_path / "base")
    assert count > 1.4e9
    found = measure(tmp_path / "base", tmp_path / "adapter", "q8_0", tmp_path / "out")
    assert found["q8_0"][0] > count
    assert found["memory_mib"]["VmHWM"] < 800
