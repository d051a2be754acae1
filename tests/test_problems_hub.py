"""Data sets of the Hub, through the real huggingface_hub client against a small server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra data")
pytest.importorskip("huggingface_hub", reason="needs the extra data")

COMMIT = "c0ffee" + "0" * 34
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


class Hub(ThreadingHTTPServer):
    """Serves `files` (path in the repository to bytes) as every dataset, at COMMIT, and counts the bytes it sends."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sent = files, 0


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            self.answer(json.dumps(self.listing(path.partition(f"/tree/{COMMIT}")[2].strip("/"))).encode())
        elif path.startswith("/api/datasets/"):
            siblings = [{"rfilename": name, **self.entry(name)} for name in self.server.files]
            self.answer(json.dumps({"id": "x/y", "sha": COMMIT, "siblings": siblings}).encode())
        elif f"/resolve/{COMMIT}/" in path:
            self.send_file(path.partition(f"/resolve/{COMMIT}/")[2])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        found = [
            {"type": "file", "path": name, **self.entry(name)} for name in form["paths"] if name in self.server.files
        ]
        self.answer(json.dumps(found).encode())

    def listing(self, folder: str) -> list[dict[str, Any]]:
        inside = [name for name in self.server.files if str(Path(name).parent) == (folder or ".")]
        return [{"type": "file", "path": name, **self.entry(name)} for name in inside]

    def entry(self, name: str) -> dict[str, Any]:
        content = self.server.files[name]
        lfs = {"sha256": sha256(content).hexdigest(), "oid": sha256(content).hexdigest()}
        return {"size": len(content), "blobId": "b", "oid": "b", "lfs": {**lfs, "size": len(content), "pointerSize": 1}}

    def send_file(self, name: str) -> None:
        content, status = self.server.files[name], 200
        total = len(content)
        headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if requested := self.headers.get("Range"):
            first, _, last = requested.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else total
            content, status = content[int(first) : end], 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{total}"
        self.answer(content, status, headers)

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.server.sent += len(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub({"README.md": b"nothing"})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def load(hub: Hub, tmp_path: Path, name: str, role: str, revision: str = "") -> dict[str, Any]:
    """Load in a fresh process: the client reads its endpoint once, at import."""
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", LOAD, name, role, revision]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
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
