"""An inference server as a child process: started, waited for until it answers, ended with all that it started."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ssd_lite.errors import UserError

_POLL_S = 0.25
_END_S = 20.0
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A running server; `log` gets what it prints.

    It ends with this process, by SIGTERM from the kernel even if that is killed (Linux), and with `close`, which also
    ends what it started. Start it from the main thread: the kernel means the thread.
    """

    def __init__(self, words: Sequence[str], port: int, log: Path) -> None:
        self.port, self._log, self._name = port, log, words[0]
        log.parent.mkdir(parents=True, exist_ok=True)
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with open(log, "ab") as out:
            try:
                self._child = subprocess.Popen(
                    list(words),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=prepare if hasattr(libc, "prctl") else None,
                )
            except OSError as error:
                raise UserError(
                    f"cannot be started: {error.strerror}.",
                    where=f"server.command ({words[0]})",
                    next_step="Install the server, or write the command with its whole path.",
                ) from error

    def wait_ready(self, limit_s: float, look: Callable[[], None]) -> None:
        """Wait until /health answers 200; `look` is called meanwhile. Raises UserError if it ends or takes longer."""
        until = time.monotonic() + limit_s
        while not self._healthy():
            look()
            self.check()
            if time.monotonic() > until:
                raise UserError(
                    f"does not answer after {limit_s:.0f} s. Its last words: {self._last_words()}",
                    where=f"server.command ({self._name})",
                    next_step=f"Look at {self._log}, or raise server.start_limit_s.",
                )
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise UserError where the server has ended."""
        code = self._child.poll()
        if code is not None:
            how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
            raise UserError(
                f"{how}. Its last words: {self._last_words()}",
                where=f"server.command ({self._name})",
                next_step=f"Look at {self._log}. Finished completions are kept; the same command goes on.",
            )

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " / ".join(line.strip()[:200] for line in lines[-3:]) or "none"

    def close(self) -> None:
        """End the server and its children: SIGTERM, after some seconds SIGKILL. Safe to call twice."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_END_S)
                break
        # Workers that outlived their parent would keep the card's memory.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
