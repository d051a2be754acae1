"""The report in a real browser: it opens, it draws, and nothing that a model wrote runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from evaluated_run import make_run

from ssd_lite.stages.report import report


def _browser() -> list[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    options += " disable-component-update disable-sync hide-scrollbars"
    return [program, *(f"--{option}" for option in options.split())]


@pytest.mark.slow
def test_a_browser_opens_the_page_and_runs_nothing_of_a_model(tmp_path: Path) -> None:
    browser, run = _browser(), make_run(tmp_path / "run")
    report(run)
    picture = tmp_path / "page.png"
    shots = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,900", f"--screenshot={picture}"]
    address = run.report.as_uri()
    subprocess.run([*browser, *shots, address], check=True, capture_output=True, timeout=120)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
    dump = [*browser, shots[0], "--dump-dom", address]
    seen = subprocess.run(dump, check=True, capture_output=True, timeout=120).stdout.decode()
    assert "<title>r1: base against tuned</title>" in seen  # not "run by the model"
    assert seen.count("<svg") == 5
    assert seen.count('<div class="pair">') == 4
