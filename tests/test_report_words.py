"""What a report says: the tone of its verdict, what that leaves open, and text and numbers for people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from evaluated_run import make_run

from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pages.html import text
from ssd_lite.stages.pages.words import caveats, duration, set_line, signed, size
from ssd_lite.stages.report import report
from ssd_lite.stages.report_findings import read_findings


@pytest.mark.parametrize(
    ("base", "tuned", "tone", "start"),
    [(0.3, 0.75, "gain", "Gain"), (0.75, 0.3, "loss", "Loss"), (0.3, 0.3, "flat", "No difference")],
)
def test_the_verdict_has_its_tone(tmp_path: Path, base: float, tuned: float, tone: str, start: str) -> None:
    run = make_run(tmp_path / "run", base_rate=base, tuned_rate=tuned)
    assert report(run)["verdict"].startswith(start)
    shown = re.search(r'<div class="verdict (\w+)"><p>(.*?)</p>', run.report.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown.group(1) == tone
    assert shown.group(2).startswith(start)


def test_what_the_verdict_leaves_open_depends_on_the_run(tmp_path: Path) -> None:
    alike, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", tuned_t=1.1)
    assert "Both arms were decoded alike (T 0.6, top-k 20, top-p 0.8)" in left_open(alike)
    words = left_open(other)
    assert "decoded differently (base T 0.6, top-k 20, top-p 0.8; tuned T 1.1, top-k 20, top-p 0.8)" in words
    assert "decoding alone may explain" in words
    could = json.loads((other.path / "evaluations" / "comparison.json").read_text())["smallest_difference"]["1"]
    assert f"could show is about {100 * could:.1f} points" in words
    assert "No null arm was compared" in words
    assert "This run is the null arm" in left_open(other, null_arm=True)


def left_open(run: RunFolder, *, null_arm: bool = False) -> str:
    return " ".join(caveats(read_findings(run), null_arm=null_arm))


def test_a_cap_that_many_samples_reach_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "ran into the token cap" not in left_open(run)
    body = json.loads(run.arm("tuned").report.read_text())
    body["cap_rate"] = 0.4
    run.arm("tuned").report.write_text(json.dumps(body))
    assert "Up to 40.0 % of an arm's completions ran into the token cap" in left_open(run)
    assert set_line(body) == "Set starter: 30 problems, 5 samples each, at most 256 tokens"


def test_programs_without_isolation_are_named_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for arm in ("base", "tuned"):
        body = json.loads(run.arm(arm).report.read_text())
        body["grader"]["tier"] = "none"
        run.arm(arm).report.write_text(json.dumps(body))
    report(run)
    page = run.report.read_text(encoding="utf-8")
    assert "<h3>What it does not show</h3>\n<ul><li>The programs ran without isolation" in page


def test_text_shows_what_a_browser_would_obey() -> None:
    assert text("a\tb\n<&>\"'") == "a\tb\n&lt;&amp;&gt;&quot;&#x27;"
    assert text("\r\u2066\ud800") == "".join(
        f'<span class="control">{name}</span>' for name in ("\\r", "\\u2066", "\\ud800")
    )


def test_numbers_for_people() -> None:
    assert [size(x) for x in (5 << 20, 3 << 30)] == ["5 MiB", "3.0 GiB"]
    assert [duration(s) for s in (4.23, 59.96, 185, 7620)] == ["4.2 s", "60.0 s", "3 min 05 s", "2 h 07 min"]
    assert [signed(x) for x in (1.25, -1.25, 0.04, -0.04, 0)] == ["+1.2", "−1.2", "0.0", "0.0", "0.0"]
