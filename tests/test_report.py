"""The report of a run: its numbers, what it says and leaves open, escaping, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluated_run import make_run

from ssd_lite.errors import UserError
from ssd_lite.recipe import Model, Recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pages.page import render
from ssd_lite.stages.report import report, table
from ssd_lite.stages.report_findings import evenly_spaced, read_findings

VOID = {"meta", "br", "img", "link", "input", "hr"}


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


def test_the_verdict_on_the_page_names_set_count_samples_and_cap(run: RunFolder) -> None:
    """What a score must be read with stands beside the verdict, before anything else is said."""
    before, _, _ = page_of(run).words.partition("What it does not show")
    assert "over the problems. Set starter: 30 problems, 5 samples each, at most 256 tokens." in before


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
    assert '<th scope="col"></th>' not in page
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
