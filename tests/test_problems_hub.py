"""Data sets of the Hub, through the real huggingface_hub client against a small server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, running

pa = pytest.importorskip("pyarrow", reason="needs the extra data")
pytest.importorskip("huggingface_hub", reason="needs the extra data")

LOAD = """
import json, sys
from ssd_lite.errors import UserError
from ssd_lite.problems.named import load_problems
try:
    found = load_problems(sys.argv[1], role=sys.argv[2], revision=sys.argv[3] or None)
except UserError as error:
    print(json.dumps({"error": error.message}))
else:
    print(json.dumps({"ids": [p.id for p in found.problems], "note": found.note, "sha256": found.sha256}))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub({"README.md": b"nothing"})) as server:
        yield server


def load(hub: Hub, tmp_path: Path, name: str, role: str, revision: str = "") -> dict[str, Any]:
    """Load in a fresh process: the client reads its endpoint once, at import."""
    command = [sys.executable, "-c", LOAD, name, role, revision]
    done = subprocess.run(
        command, env=hub.environment(tmp_path / "hub", None), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="none")
    return bytes(sink.getvalue())


def test_mbpp_is_fetched_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    rows = [
        {"task_id": n, "text": f"Return {n}.", "code": f"def f(): return {n}", "test_list": [f"assert f() == {n}"]}
        for n in (11, 12, 601)
    ]
    hub.files = {"full/train-0.parquet": parquet(rows[2:]), "full/test-0.parquet": parquet(rows[:2]), "a.txt": b"a"}
    found = load(hub, tmp_path, "mbpp", "evaluate", "main")
    assert found["ids"] == ["mbpp/11", "mbpp/12"]
    assert f"google-research-datasets/mbpp@{COMMIT}" in found["note"]
    assert load(hub, tmp_path, "mbpp", "train")["ids"] == ["mbpp/601"]


def test_rstar_coder_leaves_the_answers_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    answer = os.urandom(4_000_000).hex()
    rows = [{"question_id": "q", "question": "Print 1.", "response": answer, "is_passed": True}]
    hub.files = {"seed_sft/data-0.parquet": parquet(rows), "synthetic_sft/data-0.parquet": parquet(rows)}
    found = load(hub, tmp_path, "rstar-coder", "train")
    print(found)
    assert found["ids"] == ["rstar-coder/q"]
    assert len(found["sha256"]) == 64
    assert hub.sent < 3_000_000, "the 8 MB answer column must not be fetched"


def test_says_what_is_missing_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    assert "has no parquet file in full/" in load(hub, tmp_path, "mbpp", "evaluate")["error"]


def test_an_unreachable_hub_is_an_error_with_a_way_out(hub: Hub, tmp_path: Path) -> None:
    hub.files = {}
    hub.RequestHandlerClass = BaseHTTPRequestHandler
    message = load(hub, tmp_path, "rstar-coder", "train")["error"]
    assert "microsoft/rStar-Coder: cannot be read from the Hub" in message
    assert "give their local path" in message
