"""The page of a run: verdict, figures, plots and pairs of samples; `report_facts` adds how it was made."""

from __future__ import annotations

from collections.abc import Mapping

from ssd_lite.records import Grade, Sample
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pages import diagnosis_section, gguf_section, guard_section, svg_plots
from ssd_lite.stages.pages import facts as report_facts
from ssd_lite.stages.pages.html import block, bullets, figure, page, paragraph, section, table, text
from ssd_lite.stages.pages.merge_section import merged_against_trained
from ssd_lite.stages.pages.quartile_section import quartile_section
from ssd_lite.stages.pages.rounds_section import rounds_section
from ssd_lite.stages.pages.terms_section import terms
from ssd_lite.stages.pages.words import bounds, caveats, figure_rows, law, percent, set_line, signed
from ssd_lite.stages.report_findings import ARMS, Findings, Pair

_TONES = {"gain": "gain", "loss": "loss"}
# A thinking model may write some 100,000 characters; the whole text stands in samples.jsonl.
_SHOWN_CHARACTERS = 20_000
_LEGEND = (
    '<p class="soft"><span class="key base"></span><span>base</span>'
    '<span class="key tuned"></span><span>tuned</span></p>'
)


def render(run: RunFolder, findings: Findings) -> str:
    """The whole document as one text without references to anything outside it."""
    parts = [
        f"<header>\n<h1>{text(run.recipe.name)}: base against tuned</h1>\n</header>",
        verdict(run, findings),
        figures(findings),
        gguf_section.quantised(findings),
        guard_section.guard(run.path),
        tiers(findings),
        quartile_section(findings.comparison.get("by_quartile") or []),
        loss(findings),
        terms(findings.steps),
        spread(findings),
        diagnosis_section.diagnosis(run.path),
        rounds_section(run.path),
        pairs(findings),
        report_facts.curating(findings),
        merged_against_trained(findings.summary("merge")),
        report_facts.times(findings),
        report_facts.settings(run),
        report_facts.grading(findings),
        report_facts.commands(run),
        report_facts.versions(run, findings),
    ]
    return page(f"{run.recipe.name}: base against tuned", "\n".join(part for part in parts if part))


def verdict(run: RunFolder, findings: Findings) -> str:
    """The verdict in one sentence, and what it does not show."""
    tone = _TONES.get(findings.comparison["verdict"], "flat")
    sample = run.recipe.sample
    null_arm = sample.temperature == 1.0 and sample.top_k == 0 and sample.top_p == 1.0
    intro = "The interval in brackets holds 95 % of a paired bootstrap over the problems. "
    return section(
        "Verdict",
        f'<div class="verdict {tone}"><p>{text(findings.comparison["sentence"])}</p></div>',
        paragraph(intro + set_line(findings.arms["base"]) + "."),
        "<h3>What it does not show</h3>",
        bullets(caveats(findings, null_arm=null_arm)),
    )


def figures(findings: Findings) -> str:
    """Base against tuned in numbers, with the verdicts of the grader."""
    decoding = ["Decoding", *(law(findings.arms[arm]["settings"]) for arm in ARMS), ""]
    rows = [[name, *cells, difference] for name, cells, difference in figure_rows(findings)]
    caption = "pass@k with its 95 % interval; differences are tuned − base, in points for rates."
    names = list(dict.fromkeys(name for arm in ARMS for name in findings.arms[arm]["verdicts"]))
    verdicts = [
        [name.replace("_", " "), *(f"{findings.arms[arm]['verdicts'].get(name, 0):,}" for arm in ARMS)]
        for name in names
    ]
    return section(
        "Base against tuned",
        table(["figure", "base", "tuned", "difference"], [*rows, decoding], caption=caption),
        "<h3>Verdicts of the grader</h3>" if verdicts else "",
        table(["verdict", "base", "tuned"], verdicts, caption="Samples under each verdict."),
    )


def tiers(findings: Findings) -> str:
    """pass@k by difficulty, drawn and as a table."""
    if not findings.tiers:
        return ""
    counts = {
        tier: arm["by_difficulty"][tier]["count"]
        for arm in findings.arms.values()
        for tier in findings.tiers
        if tier in arm["by_difficulty"]
    }
    drawings = [
        svg_plots.intervals(_tier_rates(findings, k, counts), f"pass@{k} by difficulty", f"pass@{k} with 95 % interval")
        for k in findings.ks
    ]
    head = ["difficulty", "problems", *(f"pass@{k} {arm}" for k in findings.ks for arm in ARMS)]
    rows = [
        [tier, counts[tier], *(_tier_cell(findings, tier, k, arm) for k in findings.ks for arm in ARMS)]
        for tier in findings.tiers
    ]
    return section(
        "By difficulty",
        _LEGEND,
        f'<div class="plots">{"".join(drawings)}</div>',
        table(head, rows, caption="Means with 95 % intervals, in percent."),
    )


def _tier_rates(findings: Findings, k: str, counts: Mapping[str, int]) -> list[svg_plots.Rate]:
    rates = []
    for tier in findings.tiers:
        for arm in ARMS:
            values = findings.arms[arm]["by_difficulty"].get(tier, {}).get("pass_at_k", {}).get(k)
            if values:
                row = f"{tier} ({counts[tier]})"
                rates.append(svg_plots.Rate(row, arm, values["mean"], values["low"], values["high"]))
    return rates


def _tier_cell(findings: Findings, tier: str, k: str, arm: str) -> str:
    values = findings.arms[arm]["by_difficulty"].get(tier, {}).get("pass_at_k", {}).get(k)
    return f"{100 * values['mean']:.1f} {bounds(values)}" if values else "–"


def loss(findings: Findings) -> str:
    """The loss of each training step; under GRPO, whose loss says nothing, the mean reward."""
    if findings.steps and "reward" in findings.steps[0]:
        return _reward(findings)
    points = [(float(step["step"]), float(step["loss"])) for step in findings.steps]
    drawing = svg_plots.curve(points, f"Training loss over {len(points)} steps", "optimiser step", "loss in nats")
    trained = findings.summary("train").get("tokens_trained")
    over = f" over {trained:,} trained tokens" if trained else ""
    return section("Training loss", figure(drawing, f"Cross-entropy per trained token, {len(points)} steps{over}."))


def _reward(findings: Findings) -> str:
    points = [(float(step["step"]), float(step["reward"])) for step in findings.steps]
    drawing = svg_plots.curve(points, f"Reward over {len(points)} steps", "optimiser step", "mean reward")
    drawn = findings.summary("train").get("completions", 0)
    caption = f"Share of the step's completions whose program passes, {len(points)} steps, {drawn:,} completions."
    return section("Reward of the training", figure(drawing, caption))


def spread(findings: Findings) -> str:
    """Histograms of lengths and entropies, both arms over each other."""
    lengths = {arm: findings.arms[arm]["lengths"] for arm in ARMS}
    entropies = {arm: findings.arms[arm]["entropies"] for arm in ARMS}
    caps = sorted({findings.arms[arm]["settings"]["max_new_tokens"] for arm in ARMS})
    cap = " and ".join(f"{tokens:,}" for tokens in caps) + " tokens"
    plots = [
        figure(
            svg_plots.histogram(lengths, "Length of the completions, base and tuned", "tokens in a completion"),
            f"Length of the evaluated completions. Those cut off stand at {cap}.",
        )
    ]
    if all(entropies.values()):  # a server does not tell the laws it draws from
        mean = {arm: sum(values) / len(values) for arm, values in entropies.items()}
        drawing = svg_plots.histogram(
            entropies, "Mean entropy of the completions, base and tuned", "mean entropy in nats"
        )
        caption = (
            f"Mean entropy of the laws that tokens were drawn from, after truncation: base {mean['base']:.3f}, "
            f"tuned {mean['tuned']:.3f} on average."
        )
        plots.append(figure(drawing, caption))
    return section("Length and entropy", _LEGEND, '<div class="plots">', *plots, "</div>")


def pairs(findings: Findings) -> str:
    """Samples of both arms side by side."""
    if not findings.pairs:
        return ""
    note = (
        "The first sample of each arm for problems at even distances through the set: chosen before looking at any "
        "verdict. Control characters are shown as marked escapes."
    )
    return section("Samples side by side", paragraph(note, soft=True), *(_pair(pair) for pair in findings.pairs))


def _pair(pair: Pair) -> str:
    tier = f" ({pair.difficulty})" if pair.difficulty else ""
    prompt = ""
    if pair.prompt:
        shown = block(_shown(pair.prompt), label=f"Prompt of {pair.problem_id}")
        prompt = f"<details><summary>The prompt as both models read it</summary>{shown}</details>"
    columns = "".join(_column(pair.problem_id, arm, pair.samples[arm], pair.grades[arm]) for arm in ARMS)
    return f'<h3>{text(pair.problem_id)}{text(tier)}</h3>\n{prompt}<div class="pair">{columns}</div>'


def _column(problem_id: str, arm: str, sample: Sample, grade: Grade) -> str:
    tag = f'<span class="tag {"pass" if grade.passed else "fail"}">{text(grade.verdict.replace("_", " "))}</span>'
    end = "ended by itself" if sample.finish_reason == "stop" else "cut off at the cap"
    facts = f"{len(sample.completion_ids):,} tokens, {end}" + (f" · {grade.detail}" if grade.detail else "")
    shown = block(_shown(sample.completion), label=f"{arm}, {problem_id}", code=True)
    return f'<div><p><strong>{arm}</strong> {tag} <span class="soft">{text(facts)}</span></p>{shown}</div>'


def _shown(value: str) -> str:
    if len(value) <= _SHOWN_CHARACTERS:
        return value
    return f"{value[:_SHOWN_CHARACTERS]}\n… {len(value) - _SHOWN_CHARACTERS:,} more characters"


def card_figures(findings: Findings) -> dict[str, dict[str, str]]:
    """For the model card: each arm's figures by name, and their difference."""
    figures: dict[str, dict[str, str]] = {arm: {} for arm in (*ARMS, "difference")}
    for arm in ARMS:
        figures[arm]["decoding"] = law(findings.arms[arm]["settings"])
    for name, cells, difference in figure_rows(findings):
        for arm, cell in zip(figures, [*cells, difference], strict=True):
            figures[arm][name] = cell
    return figures


def terminal_table(findings: Findings) -> str:
    """The table that ends `ssd-lite run`: the arms as rows, then the verdict in one sentence and the guard.

    A loss and a drop are red by escapes of the terminal, which `click.echo` leaves out of files.
    """
    columns: list[list[str]] = [["", *ARMS, "difference"]]
    columns += [[f"pass@{k}", *_pass_cells(findings, k)] for k in findings.ks]
    rates = (("no_code_rate", "no code"), ("cap_rate", "cut off"))
    columns += [[name, *(percent(findings.arms[arm][key]) for arm in ARMS), ""] for key, name in rates]
    columns.append(["tokens", *(f"{findings.arms[arm]['mean_tokens']:.0f}" for arm in ARMS), ""])
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    sentence = str(findings.comparison["sentence"])
    own = guard_section.red(sentence) if findings.comparison["verdict"] == "loss" else sentence
    evaluated = findings.summary("evaluate")
    quantised = gguf_section.terminal_lines(evaluated.get("gguf", []))
    return "\n".join([*lines, "", own, *quantised, *guard_section.terminal_lines(evaluated.get("guard", []))])


def _pass_cells(findings: Findings, k: str) -> list[str]:
    paired = findings.comparison["pass_at_k"][k]
    cells = [
        f"{percent(findings.arms[a]['pass_at_k'][k]['mean'])} {bounds(findings.arms[a]['pass_at_k'][k])}" for a in ARMS
    ]
    return [*cells, f"{signed(100 * paired['mean'])} {bounds(paired, signed)}"]
