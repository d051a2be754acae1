"""The long-lived process in the sandbox: it forks one child per program, watches its time, and never reads a request.

Control socket (one message each): in `r` run (cases, seconds of CPU and wall per case) or `k` kill; out `h` hello, `t`
still running, `s` status. The same run message at a gate, a socket only the waiting child reads, starts it; the
program's text goes from the grader to the child through a file in memory, which the supervisor only holds.
"""

from __future__ import annotations

import builtins
import fcntl
import gc
import importlib
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import types
from typing import Any

from . import jobs, landlock, plain, prelude, program, seccomp

RUN = struct.Struct("<cIIdd")  # op, request bytes, cases, CPU seconds and wall seconds per case
STATUS = struct.Struct("<cidBB")  # op, wait status, CPU seconds, why killed, scratch dirty
ENDED, KILLED_FOR_CPU, KILLED_FOR_WALL, KILLED_BY_ORDER = range(4)
TICK_S = 0.05
_PROGRESS = struct.Struct("<I")
THREAD_STACK_BYTES = 8 << 20
OPEN_FILES, PROCESSES = 64, 80
WARM_ROUNDS = 40  # the interpreter rewrites code it has run some times; after that, children share its pages


class Supervisor:
    """One sandbox's supervisor. `setup` comes from the grader: descriptors, tier, readable paths, scratch folder."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.control = socket.socket(fileno=setup["control"])
        self.gates = [socket.socket(fileno=handle) for handle in setup["gates"]]
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.modules: dict[str, types.ModuleType] = {}
        self.poller = select.poll()
        self.poller.register(self.control, select.POLLIN)
        self.turn = 1
        self.filter = None if setup["tier"] == "none" else seccomp.Filter(seccomp.program_filter())

    def prepare(self) -> dict[str, Any]:
        """Warm the interpreter and confine this process for good. Returns what the hello message says."""
        for name in prelude.PLAIN_MODULES:
            importlib.import_module(name)
        threading.stack_size(THREAD_STACK_BYTES)
        builtins.__dict__.update(exit=_leave, quit=_leave)  # `site`, which gives programs these, is not loaded
        self.modules = {
            "prelude": program.new_module("program", prelude.names()),
            "bare": program.new_module("program", {}),
        }
        _warm()
        random.seed(0)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        seccomp.undumpable()
        facts: dict[str, Any] = {"python": sys.version.split()[0], "landlock_abi": 0, "seccomp": False}
        if self.setup["tier"] != "none":
            seccomp.set_no_new_privileges()
        if self.setup["tier"] == "landlock":
            seccomp.die_with_parent()
            landlock.drop_capabilities()
            facts["landlock_abi"] = landlock.confine(self.setup["readable"], self.setup["listable"])
        if self.setup["tier"] != "none":
            cut = self.setup["tier"] != "landlock" or facts["landlock_abi"] >= landlock.STOPS_TRUNCATION
            seccomp.Filter(seccomp.supervisor_filter(may_truncate=cut)).install()
            facts["seccomp"] = True
        gc.collect()
        gc.freeze()
        gc.disable()
        return facts

    def serve(self) -> None:
        """Answer run messages until the grader goes away."""
        waiting = self._fork()
        while True:
            message = self.control.recv(64)
            if not message:
                return
            if len(message) != RUN.size:
                continue
            _, _, cases, cpu_s, wall_s = RUN.unpack(message)
            (pid, page), waiting = waiting, self._fork()
            status, cpu, why = self._watch(pid, page, cases, cpu_s, wall_s)
            self.control.send(STATUS.pack(b"s", status, cpu, why, self._dirty()))

    def _fork(self) -> tuple[int, int]:
        """A child that waits at its gate, and where it will note its progress; made while the one before it runs.

        Two gates take turns, so that a request cannot reach the child of the next one.
        """
        self.turn ^= 1
        _PROGRESS.pack_into(self.page, self.turn * _PROGRESS.size, 0)
        pid = seccomp.fork()
        if pid == 0:
            self._become_child()
        return pid, self.turn * _PROGRESS.size

    def _dirty(self) -> bool:
        scratch = self.setup["scratch"]
        if not scratch:
            return False
        try:
            return bool(os.listdir(scratch))
        except OSError:
            return True

    def _watch(self, pid: int, page: int, cases: int, cpu_s: float, wall_s: float) -> tuple[int, float, int]:
        """Wait for the child; kill it when a case takes more than its share. Returns wait status, CPU seconds, why."""
        handle = os.pidfd_open(pid)
        self.poller.register(handle, select.POLLIN)
        _PROGRESS.pack_into(self.page, page, 0)  # the program before it could still write here
        case, case_cpu, case_wall, why = 0, 0.0, time.monotonic(), ENDED
        clock = (~pid << 3) | 2  # Linux: the CPU clock of another process (CPUCLOCK_SCHED)
        while True:
            ready = [number for number, _ in self.poller.poll(int(TICK_S * 1000))]
            if handle in ready:
                break
            if self.control.fileno() in ready:
                why = why or KILLED_BY_ORDER
                if not self.control.recv(64):
                    os.kill(pid, signal.SIGKILL)
                    os._exit(0)
            try:
                cpu, wall = time.clock_gettime(clock), time.monotonic()
            except OSError:
                continue
            (reached,) = _PROGRESS.unpack_from(self.page, page)
            if case < reached < cases:
                case, case_cpu, case_wall = reached, cpu, wall
            if not why and cpu - case_cpu > cpu_s:
                why = KILLED_FOR_CPU
            elif not why and wall - case_wall > wall_s:
                why = KILLED_FOR_WALL
            if why:
                self._kill(pid)
            else:
                self._tick()
        self.poller.unregister(handle)
        os.close(handle)
        _, status, usage = os.wait4(pid, 0)
        if self.setup["tier"] == "none":
            self._kill(pid)
        return status, usage.ru_utime + usage.ru_stime, why

    def _kill(self, pid: int) -> None:
        try:
            if self.setup["tier"] == "none":
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _tick(self) -> None:
        try:
            self.control.send(b"t", socket.MSG_DONTWAIT)
        except BlockingIOError:
            return

    def _become_child(self) -> None:
        """In the forked child: wait at the gate, drop what the program must not hold, run the request. Never returns.

        It is forked and filtered before its request exists, so it starts at once and knows no other program.
        """
        try:
            self.control.close()
            self._filter()
            self.gates[1 - self.turn].close()
            message = self.gates[self.turn].recv(64)
            if not message:
                return
            _, size, cases, cpu_s, _ = RUN.unpack(message)
            self.gates[self.turn].close()
            text = os.pread(self.setup["request"], size, 0)
            os.close(self.setup["request"])
            limits = json.loads(text[: text.index(b"\n")])
            for handle in (0, 1, 2, self.setup["results"]):
                fcntl.fcntl(handle, fcntl.F_SETFL, 0)
                os.lseek(handle, 0, os.SEEK_SET)
            self._limit(limits, int(cases * cpu_s) + 2)
            frames = program.Frames(self.setup["results"], self._progress, limits["output_bytes"])
            gc.enable()
            jobs.serve(text[len(text) - limits["body"] :], self.modules, frames)
        finally:
            os._exit(70)

    def _filter(self) -> None:
        if self.filter is None:
            os.setsid()
        else:
            self.filter.install()

    def _progress(self, case: int) -> None:
        _PROGRESS.pack_into(self.page, self.turn * _PROGRESS.size, case)

    def _limit(self, limits: dict[str, Any], cpu_s: int) -> None:
        """The kernel's own limits. Files may reach four times the output limit; the grader checks it."""
        bounds = {
            resource.RLIMIT_CPU: cpu_s,
            resource.RLIMIT_AS: limits["memory_bytes"],
            resource.RLIMIT_FSIZE: 4 * limits["output_bytes"],
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: OPEN_FILES,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }
        if self.setup["tier"] == "bubblewrap":
            bounds[resource.RLIMIT_NPROC] = PROCESSES
        for kind, bound in bounds.items():
            resource.setrlimit(kind, (bound, bound))


def _leave(code: object = None) -> None:
    raise SystemExit(code)


def _warm() -> None:
    """Use once what every child uses, so that the work of first use is done before the fork."""
    frames = program.Frames(os.open(os.devnull, os.O_WRONLY), lambda case: None, 1 << 20)
    request = {"before": [], "program": "def f(a):\n    return [a, (a, a)]\n", "entry": "f"}
    for _ in range(WARM_ROUNDS):
        for cases in ([[[1], {"d": []}]] * 3, [[[], {"d": []}]]):
            text = json.dumps({**request, "cases": cases})
            program.run_calls(json.loads(text), program.new_module("warm", {}), frames)
        plain.decode(plain.encode((1, {"a": [2.5, "b", {3}], "b": [1 << 70]})))


def main(argument: str) -> None:
    """Entry of the sandboxed interpreter: `argument` is the JSON of the setup."""
    sys.argv[:] = [""]  # a program that reads its arguments has none
    supervisor = Supervisor(json.loads(argument))
    facts = supervisor.prepare()
    supervisor.control.send(b"h" + json.dumps(facts).encode())
    try:
        supervisor.serve()
    finally:
        os._exit(0)
