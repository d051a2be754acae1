"""The limits of `run`: hours and money after which it stops cleanly, and the command that follows whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from ssd_lite.errors import UserError
from ssd_lite.heartbeat import PRICE
from ssd_lite.interrupt import STOP_AT
from ssd_lite.progress import tell


def set_limits(max_hours: float | None, max_cost: float | None, price: float | None) -> None:
    """Tell this process and all it starts when to stop. Both limits count this command alone, not earlier ones.

    Raises UserError for a limit of money without a price.
    """
    if price is not None:
        os.environ[PRICE] = repr(price)
    if max_cost is not None and price is None:
        raise UserError(
            "needs a price.", where="--max-cost", next_step="Say what this machine costs an hour: --price 0.69"
        )
    hours = [max_hours] if max_hours is not None else []
    if max_cost is not None and price is not None:
        hours.append(max_cost / price)
    if hours:
        os.environ[STOP_AT] = repr(time.monotonic() + 3600 * min(hours))


@dataclass
class Ending:
    """What `--then` is told, the run folder and the exit code, and what it ended with itself, None before it ran."""

    folder: Path
    code: int = 1
    then_code: int | None = None


@contextmanager
def then(command: str | None, folder: Path) -> Iterator[Ending]:
    """Run `command` by the shell, once, when the body ends, in whatever way but SIGKILL.

    The body sets `code` and, where it knows better, `folder`; an exception has the code that it ends the process with.
    The command finds them as SSD_LITE_EXIT_CODE and SSD_LITE_RUN. Signals that come while it works do not end it.
    """
    ending = Ending(folder)
    if command is None:
        yield ending
        return
    # Until the run listens itself, and after it, a signal must still lead here. One that is ignored (nohup) stays so.
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    before = {n: signal.signal(n, _stop) for n, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        yield ending
    except BaseException as error:
        ending.code = exit_code(error)
        raise
    finally:
        ending.then_code = _run(command, ending)
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: BaseException) -> int:
    """The exit code of the process that ends with this exception."""
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, (SystemExit, click.exceptions.Exit)):
        code = error.code if isinstance(error, SystemExit) else error.exit_code
        return code if isinstance(code, int) else int(code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 1


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _run(command: str, ending: Ending) -> int:
    """Run the command in a session of its own, which a terminal's Ctrl-C does not reach; returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    environment = {name: value for name, value in os.environ.items() if name not in (STOP_AT, PRICE)}
    environment |= {"SSD_LITE_EXIT_CODE": str(ending.code), "SSD_LITE_RUN": str(ending.folder.absolute())}
    tell(f"--then (exit code {ending.code}): {command}\n")
    done = subprocess.run(command, shell=True, env=environment, start_new_session=True, preexec_fn=_usual_signals)
    if done.returncode:
        tell(f"--then ended with exit code {done.returncode}\n")
    return done.returncode


def _usual_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
