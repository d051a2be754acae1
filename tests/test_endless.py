"""A GGUF that never stops fails a strict run, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from ssd_lite.stages.exports.endless import failure


def found(cut: int, ended: int, thinking: int = 0) -> dict[str, Any]:
    return {"prompts": 4, "ended": ended, "still_thinking": thinking, "cut_off": ["?"] * cut}


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ({"q8_0": found(4, 0)}, ["q8_0"]),
        ({"q8_0": found(4, 0), "f16": found(0, 4), "q4_0": found(4, 0)}, ["q8_0", "q4_0"]),
        ({"q8_0": found(3, 1)}, []),
        ({"q8_0": found(0, 0, thinking=4)}, []),
        ({"q8_0": {"warnings": []}}, []),
        ({}, []),
    ],
)
def test_files_that_ended_nothing(files: dict[str, Any], kinds: list[str]) -> None:
    error = failure({"checks": {"files": files}})
    assert (error is None) is (not kinds)
    assert error is None or (error.exit_code, error.message.startswith(", ".join(kinds) + ":")) == (1, True)


def test_nothing_exported_or_not_measured() -> None:
    assert failure({"checks": {}}) is None
    assert failure({}) is None
