"""The report of a run: its numbers, what it says and leaves open, escaping, and the page in a real browser."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.errors import UserError
from ssd_lite.journal import Journal
from ssd_lite.recipe import Decoding, Evaluate, Model, Recipe
from ssd_lite.records import FinishReason, Grade, Problem, Sample, SamplingSettings, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.arm_report import arm_numbers, compare
from ssd_lite.stages.report import report, table
from ssd_lite.stages.report_findings import evenly_spaced, read_findings
from ssd_lite.stages.report_html import text
from ssd_lite.stages.report_page import render
from ssd_lite.stages.report_words import duration, signed

HOSTILE = (
    '<script>document.title = "run by the model"</script>\n</pre>\x1b[31mred\x1b[0m \u202egnol\n```python\nx < 1 & 2\n'
)
VOID = {"meta", "br", "img", "link", "input", "hr"}


def make_run(folder: Path, *, base_rate: float = 0.3, tuned_rate: float = 0.3, tuned_t: float = 0.6) -> RunFolder:
    """An evaluated run of 30 problems with 5 samples each, drawn with the given rates on top of the tier's."""
    evaluate = Evaluate(n=5, base=Decoding(temperature=0.6), tuned=Decoding(temperature=tuned_t), max_new_tokens=256)
    recipe = Recipe(name="r1", model=Model(name="smollm2-135m-instruct"), evaluate=evaluate)
    run = RunFolder.create(folder, recipe)
    run.note("model", {"name": "m<b>", "kind": "packaged", "revision": None, "weights_sha256": "ab" * 32, "note": "n"})
    _finish_stages(run)
    problems = [
        Problem(f"p/{n}", ({"role": "user", "content": "?"},), difficulty=("easy", "medium", "hard")[n % 3])
        for n in range(30)
    ]
    reports = {arm: _write_arm(run, arm, problems, rate) for arm, rate in (("base", base_rate), ("tuned", tuned_rate))}
    comparison = compare(reports["base"], reports["tuned"], 1)
    (run.path / "evaluations" / "comparison.json").write_text(json.dumps(comparison))
    with Journal(run.metrics, lambda record: record["step"]) as journal:
        journal.append({"step": n, "loss": 0.9 + 0.5 / n, "seconds": 1.0} for n in range(1, 61))
    return run


def _finish_stages(run: RunFolder) -> None:
    problem_set = {"name": "starter", "count": 150, "sha256": "ef" * 32, "note": "written here"}
    run.finish("sample", {"samples": 150, "tokens": 20_000, "problems": problem_set}, 100.0)
    dropped = {"empty": 1, "stub": 2, "cut_off": 30, "too_long": 0, "duplicate": 3, "shortest": 0}
    counts = {"prompt_tokens": 9_000, "trained_tokens": 12_345, "longest": 400}
    run.finish("curate", {"samples": 150, "rows": 114, "dropped": dropped, **counts}, 1.5)
    run.finish(
        "train", {"steps": 60, "tokens_trained": 12_345, "versions": {"torch": "9.9.9"}, "peak_rss_bytes": 2 << 30}, 185
    )
    run.merged.mkdir()
    base = {"name": "b", "kind": "packaged", "revision": None, "weights_sha256": "ab" * 32, "note": "n"}
    change = {"changed_tensors": 210, "max_abs_change": 0.01, "change_norm": 1.5, "dtype": "bfloat16", "base": base}
    (run.merged / "ssd_lite_merge.json").write_text(json.dumps(change))
    run.finish("merge", change, 4.0)
    run.finish("evaluate", {"verdict": "?"}, 200.0)


def _write_arm(run: RunFolder, arm: str, problems: list[Problem], rate: float) -> dict[str, Any]:
    rng = random.Random(arm)
    settings = getattr(run.recipe.evaluate, arm)
    law = SamplingSettings(settings.temperature, settings.top_k, settings.top_p, 256)
    samples, grades = [], []
    for problem in problems:
        for index in range(5):
            length = min(256, int(rng.lognormvariate(4.4 if arm == "base" else 4.2, 0.5)))
            finish: FinishReason = "length" if length == 256 else "stop"
            text = HOSTILE + f"def f():\n    return {index}\n```\nPerhaps."
            ids = tuple(range(length))
            entropy = rng.uniform(0.1, 0.6)
            samples.append(
                Sample(problem.id, index, (1, 2), ids, text, finish, entropy, index, law, "llama_cpp", "cd" * 32)
            )
            chance = rate + {"easy": 0.3, "medium": 0.0, "hard": -0.25}[str(problem.difficulty)]
            passed = rng.random() < chance
            grades.append(
                Grade(problem.id, index, "pass" if passed else "wrong_answer", "" if passed else "got <i>3</i>")
            )
    for path, records in ((run.arm(arm).samples, samples), (run.arm(arm).grades, grades)):
        with Journal(path, lambda record: (record["problem_id"], record["index"])) as journal:
            journal.append(to_json(record) for record in records)
    numbers = arm_numbers(problems, samples, grades, ks=[1, 5], seed=1, block="last")
    limits = {"cpu_s": 2.0, "wall_s": 6.0, "memory_mib": 1024, "output_mib": 8}
    body = {
        "arm": arm,
        "model": "m",
        "model_sha256": ("ab" if arm == "base" else "cd") * 32,
        "engine": "llama_cpp",
        "gguf_type": "q8_0",
        "settings": {"temperature": law.temperature, "top_k": law.top_k, "top_p": law.top_p, "max_new_tokens": 256},
        "seed": 1,
        "n": 5,
        "k": [1, 5],
        "problems": {"name": "starter", "count": 30, "sha256": "12" * 32, "note": "", "golden": "all pass"},
        "grader": {"tier": "bubblewrap", "python": "3.11.2", "limits": limits, "workers": 2, "weak_problems": []},
        **numbers,
        "tokens": sum(numbers["lengths"]),
        "seconds": 90.0,
    }
    run.arm(arm).report.write_text(json.dumps(body))
    return body


class Outline(HTMLParser):
    """Checks that every element is closed in order, and collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(self.open[-1])
        if "style" not in self.open:
            self.words += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run").path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    """A copy of its own, since making one takes some tenths of a second."""
    return RunFolder.open(Path(shutil.copytree(made, tmp_path / "run")))


def page_of(run: RunFolder) -> Outline:
    report(run)
    return Outline(run.report.read_text(encoding="utf-8"))


def test_the_page_is_written_once_and_remembered(run: RunFolder) -> None:
    summary = report(run)
    comparison = json.loads((run.path / "evaluations" / "comparison.json").read_text())
    assert summary == {"report": "report.html", "verdict": comparison["sentence"]}
    assert run.done("report") == summary
    run.report.write_text("as it was")
    assert report(run) == summary
    assert run.report.read_text() == "as it was"
    run.report.unlink()  # a page that was deleted is written again
    report(run)
    assert run.report.stat().st_size > 10_000


def test_a_run_that_is_not_evaluated_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Recipe(name="r", model=Model(name="m")))
    with pytest.raises(UserError, match="'evaluate' is not done"):
        report(run)
    with pytest.raises(UserError, match="'evaluate' is not done"):
        table(run)


def test_a_damaged_arm_report_names_its_file(run: RunFolder) -> None:
    run.arm("tuned").report.write_text("{")
    with pytest.raises(UserError, match=re.escape(str(run.arm("tuned").report))):
        report(run)


def test_every_number_of_the_arms_is_on_the_page(run: RunFolder) -> None:
    words = page_of(run).words
    for arm in ("base", "tuned"):
        numbers = json.loads(run.arm(arm).report.read_text())
        for interval in numbers["pass_at_k"].values():
            low, high = 100 * interval["low"], 100 * interval["high"]
            assert f"{100 * interval['mean']:.1f} % [{low:.1f}, {high:.1f}]" in words
        for tier in numbers["by_difficulty"].values():
            values = tier["pass_at_k"]["5"]
            assert f"{100 * values['mean']:.1f} [{100 * values['low']:.1f}, {100 * values['high']:.1f}]" in words
        for key in ("no_code_rate", "cap_rate"):
            assert f"{100 * numbers[key]:.1f} %" in words
        assert f"{numbers['mean_tokens']:.1f}" in words
        assert f"{numbers['hedging_per_1000_words']:.2f}" in words
        assert numbers["model_sha256"] in words
    for fact in ("12,345 tokens trained", "114", "76.0 %", "3 min 05 s", "2.0 GiB", "9.9.9", "bubblewrap", "12" * 32):
        assert fact in words


def test_every_setting_is_on_the_page_and_the_changed_ones_stand_out(run: RunFolder) -> None:
    report(run)
    page = run.report.read_text(encoding="utf-8")
    rows = dict(
        re.findall(r'<tr(?: class="(?:changed)")?><th scope="row">([a-z0-9_.]+)</th><td class="wrap">(.*?)</td>', page)
    )
    dumped = run.recipe.model_dump(mode="json", exclude={"name", "description"})
    for section, value in dumped.items():
        for key in value if isinstance(value, dict) else []:
            names = (
                [f"{section}.{key}.{k}" for k in value[key]] if isinstance(value[key], dict) else [f"{section}.{key}"]
            )
            assert set(names) <= set(rows)
    assert rows["evaluate.tuned.temperature"] == "0.6"
    assert rows["train.learning_rate"] == "0.0001"
    changed = set(re.findall(r'<tr class="changed"><th scope="row">(.*?)</th>', page))
    assert changed == {
        "evaluate.n", "evaluate.base.temperature", "evaluate.tuned.temperature", "evaluate.max_new_tokens",
    }  # fmt: skip


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
    assert "Both arms were decoded alike (T 0.6, top-k 20, top-p 0.8)" in page_of(alike).words
    words = page_of(other).words
    assert "decoded differently (base T 0.6, top-k 20, top-p 0.8; tuned T 1.1, top-k 20, top-p 0.8)" in words
    assert "decoding alone may explain" in words
    could = json.loads((other.path / "evaluations" / "comparison.json").read_text())["smallest_difference"]["1"]
    assert f"could show is about {100 * could:.1f} points" in words
    assert "No null arm was compared" in words


def test_programs_without_isolation_are_named_first(run: RunFolder) -> None:
    for arm in ("base", "tuned"):
        body = json.loads(run.arm(arm).report.read_text())
        body["grader"]["tier"] = "none"
        run.arm(arm).report.write_text(json.dumps(body))
    report(run)
    page = run.report.read_text(encoding="utf-8")
    assert "<h3>What it does not show</h3>\n<ul><li>The programs ran without isolation" in page


def test_what_a_model_wrote_is_text_and_nothing_else(run: RunFolder) -> None:
    outline = page_of(run)
    page = run.report.read_text(encoding="utf-8")
    assert outline.tags["script"] == 0
    assert outline.tags["i"] == 0
    assert "&lt;script&gt;document.title = &quot;run by the model&quot;&lt;/script&gt;\n&lt;/pre&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert '<span class="control">\\x1b</span>[31mred' in page
    assert '<span class="control">\\u202e</span>gnol' in page
    assert "got &lt;i&gt;3&lt;/i&gt;" in page
    assert "m&lt;b&gt;" in page


def test_the_page_needs_nothing_from_outside(run: RunFolder) -> None:
    outline = page_of(run)
    page = run.report.read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert not outline.tags.keys() & {"link", "script", "img", "iframe", "object", "embed", "base", "form"}
    assert not [a for a in outline.attributes if a[1] in ("src", "href", "srcset", "style") or a[1].startswith("on")]


def test_the_page_can_be_read_without_eyes_or_colour(run: RunFolder) -> None:
    outline = page_of(run)
    page = run.report.read_text(encoding="utf-8")
    assert ("html", "lang", "en") in outline.attributes
    assert outline.headings[:2] == ["h1", "h2"]
    assert outline.headings.count("h1") == 1
    plots = re.findall(r'<svg viewBox="[^"]+" role="img" aria-label="([^"]+)"><title>([^<]+)</title>', page)
    assert len(plots) == page.count("<svg") == 5
    assert all(label == title for label, title in plots)
    assert page.count("<table>") == page.count("<caption>") == page.count("<thead>")
    assert outline.tags["tr"] == page.count('<th scope="row">') + page.count("<thead>")


def test_pairs_are_chosen_by_place_and_not_by_verdict(run: RunFolder) -> None:
    pairs = read_findings(run).pairs
    assert [pair.problem_id for pair in pairs] == ["p/3", "p/11", "p/18", "p/26"]
    assert evenly_spaced(2, 4) == [0, 1]
    assert evenly_spaced(0, 4) == []
    assert evenly_spaced(9, 1) == [4]
    for pair in pairs:
        assert {sample.index for sample in pair.samples.values()} == {0}


def test_a_run_without_tiers_steps_or_pairs_still_has_its_page(run: RunFolder) -> None:
    for arm in ("base", "tuned"):
        body = json.loads(run.arm(arm).report.read_text())
        body["by_difficulty"] = {}
        run.arm(arm).report.write_text(json.dumps(body))
    run.metrics.unlink()
    findings = read_findings(run)
    page = render(run, type(findings)(findings.arms, findings.comparison, findings.manifest, [], []))
    Outline(page)
    for heading in ("By difficulty", "Training loss", "Samples side by side"):
        assert heading not in page


def test_the_model_card_has_the_figures(run: RunFolder) -> None:
    sentence = report(run)["verdict"]
    card = (run.merged / "README.md").read_text(encoding="utf-8")
    numbers = json.loads(run.arm("tuned").report.read_text())["pass_at_k"]["1"]
    assert f"{sentence} Set starter: 30 problems, 5 samples each, at most 256 tokens." in card
    assert "| | base | tuned | difference |" in card
    assert f"{100 * numbers['mean']:.1f} % [" in card
    assert "Not measured" not in card


def test_the_terminal_table_has_both_arms_their_difference_and_the_verdict(run: RunFolder) -> None:
    lines = table(run).splitlines()
    assert lines[0].split() == ["pass@1", "pass@5", "no", "code", "cut", "off", "tokens"]
    assert [line.split()[0] for line in lines[1:4]] == ["base", "tuned", "difference"]
    for line, arm in zip(lines[1:3], ("base", "tuned"), strict=True):
        numbers = json.loads(run.arm(arm).report.read_text())
        interval = numbers["pass_at_k"]["5"]
        assert f"{100 * interval['mean']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" in line
        assert line.endswith(f"{numbers['mean_tokens']:.0f}")
    assert lines[-1] == json.loads((run.path / "evaluations" / "comparison.json").read_text())["sentence"]
    assert max(map(len, lines[:4])) <= 100


def test_text_shows_what_a_browser_would_obey() -> None:
    assert text("a\tb\n<&>\"'") == "a\tb\n&lt;&amp;&gt;&quot;&#x27;"
    assert text("\r\u2066\ud800") == "".join(
        f'<span class="control">{name}</span>' for name in ("\\r", "\\u2066", "\\ud800")
    )


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (4.23, 59.96, 185, 7620)] == ["4.2 s", "60.0 s", "3 min 05 s", "2 h 07 min"]
    assert [signed(x) for x in (1.25, -1.25, 0.04, -0.04, 0)] == ["+1.2", "−1.2", "0.0", "0.0", "0.0"]


def _browser() -> list[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    options += " disable-component-update disable-sync hide-scrollbars"
    return [program, *(f"--{option}" for option in options.split())]


def test_a_browser_opens_the_page_and_runs_nothing_of_a_model(run: RunFolder, tmp_path: Path) -> None:
    browser = _browser()
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
