"""A rented machine for tests: a stand-in for `ssd-lite` that obeys signals, and one for RunPod's REST API."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from hub_server import running

ROOT = Path(__file__).resolve().parents[1]
CLOUD = ROOT / "recipes" / "cloud"
WANTED = {"RECIPE": "quickstart", "MAX_HOURS": "0.5", "MAX_COST": "3", "PRICE": "0.69"}
# Writes its words, one a line; makes a run folder; then does what FAKE says: end with that code, or wait for SIGTERM.
SSD_LITE = """#!/usr/bin/env bash
out=$4
trap 'trap "" TERM; echo stopped >>"$out/samples.jsonl"; exit "${FAKE_STOPPED:-75}"' TERM
printf '%s\\n' "$@" >"$FAKE_LOG"
[ -e "$out/recipe.yaml" ] && touch "$FAKE_LOG.resumed"
mkdir -p "$out/merged" "$out/gguf"
echo '{ "run_seconds": 720.0, "cost": 1 }' >"$out/heartbeat.json"
echo 'name: x' >"$out/recipe.yaml"; echo '{}' >"$out/manifest.json"; echo weights >"$out/merged/weights"
echo file >"$out/gguf/file"; echo line >>"$out/samples.jsonl"; echo lock >"$out/.lock"
[ "$FAKE" = 0 ] && echo report >"$out/report.html"
[ "$FAKE" = wait ] || exit "$FAKE"
while :; do sleep 0.05; done
"""


@dataclass
class Machine:
    """A home folder with a PATH that holds system tools and the stand-in alone."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> None:
        """A command on this machine's PATH."""
        path = self.home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *words: str | Path, cwd: Path = ROOT, **settings: str) -> subprocess.Popen[str]:
        """A process on this machine."""
        environment = {**self.environment, **settings}
        return subprocess.Popen(
            list(map(str, words)), env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *words: str | Path, limit_s: float = 60, **settings: str) -> tuple[int, str]:
        """Exit code and output of a process."""
        return ended(self.start(*words, **settings), limit_s)

    @property
    def words(self) -> list[str]:
        """What `ssd-lite` was given; empty where it was not started."""
        log = self.home / "words"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def resumed(self) -> bool:
        """Did the stand-in find a run that it could go on with?"""
        return (self.home / "words.resumed").exists()


def machine(home: Path, **settings: str) -> Machine:
    """A machine with the stand-in for `ssd-lite` and the wanted settings."""
    made = Machine(home)
    made.write("ssd-lite", SSD_LITE)
    path = f"{home / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    words = str(home / "words")
    made.environment = {"HOME": str(home), "PATH": path, "FAKE_LOG": words, "FAKE": "0", **WANTED, **settings}
    return made


def ended(process: subprocess.Popen[str], limit_s: float = 60) -> tuple[int, str]:
    """Exit code and output at the end; the process is killed where it takes too long."""
    try:
        out, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out


def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for a condition; fails after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class RunPod:
    """What the stand-in was asked, and how it answers.

    `refusals` are statuses for the next DELETEs, `pages` what the next requests get, cut short where they end in "…".
    """

    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=lambda: {"pod-key"})
    pods: set[str] = field(default_factory=lambda: {"pod1"})

    @property
    def removed(self) -> bool:
        return "pod1" not in self.pods


def _handler(state: RunPod) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            pass

        def _answer(self, status: int, value: object = None) -> None:
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _page(self, page: str) -> None:
            body = page.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + 100 * page.endswith("…")))
            self.end_headers()
            self.wfile.write(body)

        def _any(self) -> None:
            key = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            state.asked.append((self.command, self.path, key))
            length = int(self.headers["Content-Length"] or 0)
            name = self.path.rsplit("/", 1)[-1]
            if length:
                state.bodies.append(json.loads(self.rfile.read(length)))
            if state.pages:
                self._page(state.pages.pop(0))
            elif self.command == "DELETE" and state.refusals:
                self._answer(state.refusals.pop(0), {"error": "later"})
            elif key not in state.keys:
                self._answer(401, {"error": "no"})
            elif self.command == "POST":
                self._answer(201, {"id": "pod1", "costPerHr": "0.74", "desiredStatus": "RUNNING"})
            elif name not in state.pods:
                self._answer(404, {"error": "pod not found"})
            elif self.command == "DELETE":
                state.pods.discard(name)
                self._answer(204)
            else:
                self._answer(200, {"id": name, "desiredStatus": "RUNNING"})

        do_GET = do_POST = do_DELETE = _any

    return Handler


@contextmanager
def runpod_api() -> Iterator[RunPod]:
    """RunPod's /pods on this machine: keys are checked, pods can be made, looked at and removed."""
    state = RunPod()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    with running(server):
        yield state


def load(name: str) -> ModuleType:
    """A Python file of recipes/cloud as a module."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), CLOUD / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # recipes/ ships as it lies
        spec.loader.exec_module(module)
    return module


def modal_app() -> ModuleType:
    """modal_app.py with the real `modal`, or with a stand-in whose decorators leave functions as they are."""
    if importlib.util.find_spec("modal") is not None:
        return load("modal_app.py")
    chain = MagicMock()
    chain.App.return_value.function.return_value = chain.App.return_value.local_entrypoint.return_value = lambda f: f
    chain.is_local.return_value = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "modal", chain)
        return load("modal_app.py")


# The other side of an SSH connection is a folder of this machine: the host is left out, the words go to a shell there.
SSH = """#!/usr/bin/env bash
[ -e "$REMOTE/unplugged" ] && exit 255
shift
cd "$REMOTE" && HOME=$REMOTE exec bash -c "$*"
"""
# What ssh.sh uses of rsync: folders and files, a trailing slash for what is inside, --exclude of names.
RSYNC = """#!/usr/bin/env python3
import os, shutil, sys
from pathlib import Path
options = [word for word in sys.argv[1:] if word.startswith("--")]
*sources, target = [word for word in sys.argv[1:] if not word.startswith("--")]
here = lambda word: os.path.join(os.environ["REMOTE"], word.split(":", 1)[1]) if ":" in word else word
without = shutil.ignore_patterns(*(o.split("=", 1)[1].lstrip("/") for o in options if o.startswith("--exclude=")))
target = here(target)
for source in map(here, sources):
    path = Path(source)
    into = Path(target) / path.name if target.endswith("/") and not source.endswith("/") else Path(target)
    if path.is_dir():
        shutil.copytree(path, into, ignore=without, dirs_exist_ok=True)
    else:
        shutil.copy2(path, into)
"""


def alive(pid: int) -> bool:
    """Is there a process of this number that has not ended?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def inherited(*names: str) -> dict[str, str]:
    """These variables of the tests' own environment."""
    return {name: os.environ[name] for name in names if name in os.environ}
