"""Limits of a run and the command that follows it: exit codes, once and always, and what was saved goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from test_pipeline import ended, recipe_of, start, until
from tiny_models import packaged_source

from ssd_lite.cli import main
from ssd_lite.command_line import limits
from ssd_lite.command_line.limits import set_limits, then
from ssd_lite.errors import Stopped, UserError
from ssd_lite.interrupt import STOP_AT, past_limit, stop_requested
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages import child
from ssd_lite.stages.child import run_command
from ssd_lite.stages.status import status


@pytest.fixture(autouse=True)
def _no_limit_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (STOP_AT, limits.PRICE):
        monkeypatch.setenv(name, "")  # so that the test's end brings back what was there
        monkeypatch.delenv(name)


# -- when to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "cost", "price", "seconds"),
    [(2.0, None, None, 7200), (None, 3.0, 0.5, 21600), (2.0, 3.0, 0.5, 7200), (8.0, 3.0, 0.5, 21600)],
)
def test_the_nearer_limit_counts(hours: float | None, cost: float | None, price: float | None, seconds: float) -> None:
    set_limits(hours, cost, price)
    assert float(os.environ[STOP_AT]) - time.monotonic() == pytest.approx(seconds, abs=5)
    assert not stop_requested()


def test_a_price_alone_is_no_limit_and_money_needs_one() -> None:
    set_limits(None, None, 0.5)
    assert STOP_AT not in os.environ
    with pytest.raises(UserError, match="needs a price"):
        set_limits(None, 1.0, None)


def test_past_the_limit_is_a_wish_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AT, repr(time.monotonic() - 10))
    assert stop_requested()
    assert past_limit(5)
    assert not past_limit(60)


@pytest.mark.slow
def test_a_stage_that_does_not_look_is_told_and_then_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage is a process that ignores SIGTERM; being killed at the limit counts as stopped, not as broken."""
    told = tmp_path / "told"
    code = (
        "import pathlib, signal, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(told)!r}).touch())\n"
        "while True: time.sleep(0.05)\n"
    )
    plain = subprocess.Popen
    monkeypatch.setattr(child.subprocess, "Popen", lambda command, **options: plain([sys.executable, "-c", code]))
    monkeypatch.setattr(child, "TERMINATE_AFTER_LIMIT_S", 3.0)
    monkeypatch.setattr(child, "KILL_AFTER_LIMIT_S", 8.0)
    monkeypatch.setenv(STOP_AT, repr(time.monotonic()))
    with run_lock(tmp_path) as lock:
        done = run_command(["sample"], lock, None, [])
    assert told.exists()
    assert done.stopped


# -- what follows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (Stopped("x"), 75),
        (click.ClickException("x"), 1),
        (SystemExit(143), 143),
        (SystemExit("text"), 1),
        (SystemExit(None), 0),
        (click.exceptions.Exit(3), 3),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_the_command_is_told_how_it_ended(error: BaseException, code: int, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with pytest.raises(type(error)), then(f'echo "$SSD_LITE_EXIT_CODE $SSD_LITE_RUN" >> {note}', tmp_path / "r"):
        raise error
    assert note.read_text() == f"{code} {tmp_path / 'r'}\n"


def test_limits_do_not_bind_the_command(tmp_path: Path) -> None:
    set_limits(1.0, None, 0.5)
    with then(f"env > {tmp_path / 'env'}", tmp_path) as ending:
        ending.code = 0
    assert (ending.code, ending.then_code) == (0, 0)
    assert not {STOP_AT, limits.PRICE} & {
        line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()
    }


def test_a_refused_recipe_ends_with_it_too(tmp_path: Path) -> None:
    note = tmp_path / "note"
    words = ["run", "quickstart", "--set", "sample.n=0", "--then", f"echo $SSD_LITE_EXIT_CODE >> {note}"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "sample.n" in result.stderr
    assert note.read_text() == "2\n"


def test_a_command_that_fails_spoils_only_a_run_that_was_well(tmp_path: Path) -> None:
    from test_pipeline import finished_run

    run = finished_run(tmp_path / "r")
    words = ["run", str(recipe_of(run)), "--out", str(run.path), "--then", "exit 7"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "--then ended with exit code 7" in result.stderr
    assert "Everything is done" in result.stdout
    result = CliRunner().invoke(main, ["run", "quickstart", "--set", "sample.n=0", "--then", "exit 7"])
    assert result.exit_code == 2


@pytest.mark.parametrize("reader", ["a pipe nobody reads", "a terminal that closed"])
def test_it_runs_where_nobody_reads_any_more(reader: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"""
import pathlib, sys
from ssd_lite.command_line.limits import then
sys.stdin.read()
with then("echo $SSD_LITE_EXIT_CODE >> {note}", pathlib.Path("r")) as ending:
    ending.code = 0
"""
    read, write = os.pipe() if "pipe" in reader else os.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=write, stderr=write)
    os.close(write)
    os.close(read)  # of a terminal the side that shows it
    process.communicate(b"", timeout=60)
    assert note.read_text() == "0\n"


ENDING = """
import os, pathlib, sys
from ssd_lite.command_line.limits import then
note = pathlib.Path(sys.argv[1])
slow = f"echo begun >> {note}; sleep 1; echo ended $SSD_LITE_EXIT_CODE >> {note}"
with then(slow, pathlib.Path("r")):
    print("ready", flush=True)
    import time
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_lead_to_it_once_and_do_not_end_it(number: int, tmp_path: Path) -> None:
    note = tmp_path / "note"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{ENDING}", str(note)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    until(note.exists)
    for again in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(again)
    process.communicate(timeout=60)
    code = 128 + number
    assert note.read_text() == f"begun\nended {code}\n"
    assert process.returncode in (code, -number)


# -- real runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sampling(tmp_path: Path) -> Iterator[tuple[list[str | Path], RunFolder]]:
    """The words of a run that samples for minutes, and its folder."""
    packaged_source()
    settings = ["problems.train_limit=150", "sample.max_new_tokens=16", "sample.batch_size=2", "threads=1"]
    run = RunFolder.create(tmp_path / "run", load_recipe("quickstart", settings))
    yield ["run", recipe_of(run), "--out", run.path], run
    until(lambda: status(run)["in_use_by"] is None)


@pytest.mark.slow
def test_a_run_stops_at_its_limit_and_at_a_signal_and_goes_on(
    sampling: tuple[list[str | Path], RunFolder], tmp_path: Path
) -> None:
    words, run = sampling
    note = tmp_path / "note"
    after = ["--then", f"echo $SSD_LITE_EXIT_CODE >> {note}"]
    # Far too short for 150 samples; if starting takes longer than the limit, the run stops before its first sample.
    code, _, err = ended(start(*words, "--max-cost", "0.004", "--price", "1", *after))
    assert code == 75, err
    assert "limit of time or money is reached" in err
    assert note.read_text() == "75\n"
    saved = run.samples.read_bytes() if run.samples.exists() else b""
    assert len(saved.splitlines()) < 150
    beat = status(run)["heartbeat"]
    assert (beat["state"], beat["price"]) == ("stopped", 1.0)
    assert beat["cost"] == pytest.approx(beat["run_seconds"] / 3600, abs=1e-4)  # four digits are kept

    second = start(*words, "--max-hours", "1", *after)
    until(lambda: run.samples.exists() and len(run.samples.read_bytes()) > len(saved))
    second.send_signal(signal.SIGTERM)
    code, _, err = ended(second)
    assert code == 75, err
    assert "limit" not in err.splitlines()[-1]
    assert note.read_text() == "75\n75\n"
    assert run.samples.read_bytes().startswith(saved)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        ("run", "quickstart", "--max-hours"),
        ("run", "quickstart", "--max-cost"),
        ("run", "quickstart", "--price"),
        ("plan", "quickstart", "--price"),
        ("plan", "quickstart", "--ram"),
        ("plan", "quickstart", "--disk"),
        ("doctor", "--limit"),
    ],
)
def test_a_number_that_limits_nothing_is_refused(
    words: tuple[str, ...], value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No comparison with nan is true, so a run would never reach such a limit."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*words, value])
    assert done.exit_code == 2, done.output
    assert words[-1] in done.output
    assert not list(tmp_path.rglob("recipe.yaml"))
