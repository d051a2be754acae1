"""One running sandbox: a supervisor process behind bubblewrap or Landlock, its files in memory, and its messages.

What each tier does not stop. Every tier: kernel bugs, side channels, timing. `bubblewrap`: reading the interpreter's
standard library and /usr/lib, which are bound read-only. `landlock`: the host's process ids and file metadata (names,
sizes, times) stay visible, there is no private /tmp, and the number of threads is bounded by memory alone. `none`:
everything but CPU, memory and file-size limits; the program has all rights of this user.

Nothing here deletes a file: a sandbox with a dirty scratch is thrown away with its private /tmp.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ssd_lite.grading.confinement import INSIDE, bubblewrap_command, interpreter, landlock_paths
from ssd_lite.grading.inside import supervisor
from ssd_lite.records import Limits

Tier = Literal["bubblewrap", "landlock", "none"]
START_LIMIT_S = 30.0
STACK_BYTES = 512 << 20
_BOOT = (
    "import sys; sys.path.append({room!r}); from inside import supervisor; "
    "sys.path.remove({room!r}); supervisor.main(sys.argv[1])"
)
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}


class SandboxError(RuntimeError):
    """The sandbox did not start, or is gone."""


class Watcher(Protocol):
    """Reads what a running child has written behind `offset`, which it moves on; True ends the child."""

    offset: int

    def __call__(self, results: bytes) -> bool: ...


@dataclass(frozen=True)
class Job:
    """One child to run. `body` is the request's JSON; `stop_early` reads new results and may end the child."""

    body: bytes
    limits: Limits
    cases: int = 1
    stdin: bytes = b""
    alone: bool = False
    stop_early: Watcher | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a child: its wait status, CPU seconds, why it was killed, and what it left in the files."""

    status: int
    cpu_s: float
    why: int
    results: bytes
    output: bytes
    output_bytes: int
    dirty: bool = False
    lost: bool = False


class Sandbox:
    """A started supervisor. One child at a time: `begin` a job, then `receive` until it gives an Outcome."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.facts: dict[str, Any] = {}
        self.job: Job | None = None
        self._files = {name: os.memfd_create(f"ssd_lite_{name}") for name in ("stdin", "stdout", "stderr")}
        self._files |= {name: os.memfd_create(f"ssd_lite_{name}") for name in ("request", "results")}
        self.control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self._gates, self._turn = [ours for ours, _ in pairs], 1
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with remote, pairs[0][1], pairs[1][1]:
                self._process = self._start(remote, [theirs.fileno() for _, theirs in pairs])
        except BaseException:
            self.close()
            raise

    def _start(self, remote: socket.socket, gates: list[int]) -> subprocess.Popen[bytes]:
        handles = (self._files["request"], self._files["results"], remote.fileno())
        setup: dict[str, Any] = dict(zip(("request", "results", "control"), handles, strict=True))
        setup["gates"] = gates
        setup |= {
            "tier": self.tier,
            "scratch": "/tmp" if self.tier == "bubblewrap" else "",
            "readable": [],
            "listable": [],
        }
        command, room = [], str(INSIDE.parent)
        if self.tier == "bubblewrap":
            if shutil.which("bwrap") is None:
                raise SandboxError("bubblewrap (the command bwrap) is not installed")
            command, room = bubblewrap_command(), "/grading"
        elif self.tier == "landlock":
            setup["readable"], setup["listable"] = landlock_paths()
        command += [interpreter(), "-s", "-S", "-B", "-P", "-c", _BOOT.format(room=room), json.dumps(setup)]
        soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
        deep = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
        stdin, stdout, stderr = (self._files[name] for name in ("stdin", "stdout", "stderr"))
        resource.setrlimit(resource.RLIMIT_STACK, (deep, hard))
        try:
            return subprocess.Popen(
                command,
                pass_fds=(*handles, *gates),
                env=_ENVIRONMENT,
                cwd="/",
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
        except OSError as error:
            raise SandboxError(f"could not start {command[0]}: {error}") from None
        finally:
            resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))

    def begin(self, job: Job) -> None:
        """Hand a job to the supervisor. Raises SandboxError where it is gone."""
        limits = {"memory_bytes": job.limits.memory_mib << 20, "output_bytes": int(job.limits.output_mib * (1 << 20))}
        head = json.dumps({**limits, "body": len(job.body)}).encode() + b"\n"
        for name, content in (("stdin", job.stdin), ("request", head + job.body), ("results", b""), ("stdout", b"")):
            self._fill(self._files[name], content)
        size = len(head) + len(job.body)
        message = supervisor.RUN.pack(b"r", size, job.cases, job.limits.cpu_s, job.limits.wall_s)
        try:
            self._turn ^= 1
            self._gates[self._turn].send(message)
            self.control.send(message)
        except OSError:
            raise SandboxError("the supervisor is gone") from None
        self.job = job

    @staticmethod
    def _fill(handle: int, content: bytes) -> None:
        fcntl.fcntl(handle, fcntl.F_SETFL, 0)
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        done = 0
        while done < len(content):
            done += os.pwrite(handle, content[done:], done)

    def receive(self) -> Outcome | None:
        """Take one message; the Outcome when the child has ended, None otherwise. Never raises for a lost sandbox."""
        try:
            message = self.control.recv(4096)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        job = self.job
        if message[:1] == b"h":
            self.facts = json.loads(message[1:])
        elif message[:1] == b"t" and job is not None and job.stop_early is not None:
            most = 4 * int(job.limits.output_mib * (1 << 20))
            if job.stop_early(self._read("results", most, job.stop_early.offset)):
                with contextlib.suppress(OSError):
                    self.control.send(b"k")
        elif message[:1] == b"s" and job is not None and len(message) == supervisor.STATUS.size:
            self.job = None
            _, status, cpu_s, why, dirty = supervisor.STATUS.unpack(message)
            return self._outcome(job, status, cpu_s, why, bool(dirty))
        elif not message:
            self.job = None
            return Outcome(0, 0.0, 0, b"", b"", 0, dirty=True, lost=True)
        return None

    def _outcome(self, job: Job, status: int, cpu_s: float, why: int, dirty: bool) -> Outcome:
        limit = int(job.limits.output_mib * (1 << 20))
        written = max(os.fstat(self._files[name]).st_size for name in ("stdout", "stderr"))
        if os.fstat(self._files["stderr"]).st_size:
            self._fill(self._files["stderr"], b"")
        return Outcome(
            status, cpu_s, why, self._read("results", 4 * limit), self._read("stdout", limit), written, dirty
        )

    def _read(self, name: str, limit: int, offset: int = 0) -> bytes:
        size = min(os.fstat(self._files[name]).st_size, limit) - offset
        return os.pread(self._files[name], size, offset) if size > 0 else b""

    def wait_ready(self) -> None:
        """Wait for the hello message. Raises SandboxError with what the sandbox said instead."""
        deadline = time.monotonic() + START_LIMIT_S
        while not self.facts:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.control], [], [], left)[0]:
                raise SandboxError("the sandbox did not answer in time")
            if self.receive() is not None:
                raise SandboxError(self.complaint())

    def complaint(self) -> str:
        """The last line the sandbox wrote to its error stream."""
        lines = self._read("stderr", 1 << 16).decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "the sandbox ended without a word"

    def run(self, job: Job) -> Outcome:
        """Run one job to its end, alone."""
        self.begin(job)
        while True:
            select.select([self.control], [], [])
            outcome = self.receive()
            if outcome is not None:
                return outcome

    def close(self) -> None:
        """Kill the sandbox and everything in it, and give the files back. Safe to call twice."""
        if not self._files:
            return
        self.control.close()
        for gate in self._gates:
            gate.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for handle in self._files.values():
            os.close(handle)
        self._files = {}
