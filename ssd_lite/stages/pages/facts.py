"""How a run was made, for its report: curating, times, every setting, the grader, commands, versions and hashes."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from typing import Any

from ssd_lite import __version__
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.recipe_stages import STAGE_SECTIONS, stages_of
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.pages.html import block, paragraph, section, table, text
from ssd_lite.stages.pages.words import duration, size
from ssd_lite.stages.report_findings import ARMS, Findings

# The reasons of stages.curate, in words.
_REASONS = {
    "empty": "empty",
    "stub": "a single line",
    "cut_off": "cut off at the token cap",
    "too_long": "longer than train.max_length",
    "duplicate": "equal to another of its problem",
    "not_correct": "failed its problem's tests",
    "shortest": "among the shortest",
}


def curating(findings: Findings) -> str:
    """How many samples were trained on, and why the others were not."""
    summary = findings.summary("curate")
    if not summary:
        return ""
    samples = summary["samples"]
    rows = [["sampled", f"{samples:,}", "100.0 %"]]
    for reason, count in summary["dropped"].items():
        rows.append([f"dropped: {_REASONS.get(reason, reason)}", f"{count:,}", _of(count, samples)])
    rows.append(["trained on", f"{summary['rows']:,}", _of(summary["rows"], samples)])
    caption = f"{summary['trained_tokens']:,} tokens trained; each sample under the first reason that holds."
    note = "Nothing looked at correctness: right and wrong programs were trained on alike."
    if graded := summary.get("graded"):
        note = (
            f"Only programs that pass were trained on (curate.only_correct: rejection sampling, not SSD): "
            f"{graded['passed']:,} of {graded['samples']:,} samples passed, of {graded['problems_passed']:,} of "
            f"{graded['problems']:,} problems."
        )
    return section("What was trained on", paragraph(note), table(["step", "samples", "share"], rows, caption=caption))


def _of(count: int, whole: int) -> str:
    return f"{100 * count / whole:.1f} %" if whole else "–"


def times(findings: Findings) -> str:
    """Working time and peak memory of each stage."""
    stages = findings.manifest.get("stages", {})
    processes = findings.manifest.get("processes", {})
    rows, total = [], 0.0
    for stage in STAGE_SECTIONS:
        if stage in stages and stage != "report":
            seconds = max(stages[stage]["seconds"], processes.get(stage, {}).get("seconds", 0))
            peak = processes.get(stage, {}).get("peak_rss_bytes") or findings.summary(stage).get("peak_rss_bytes")
            rows.append([stage, duration(seconds), size(peak) if peak else "–", _minute(stages[stage]["finished"])])
            total += seconds
    rows.append(["all", duration(total), "", ""])
    caption = "Wall time of each stage; the restarts of a whole run are in it."
    return section("Time", table(["stage", "time", "peak memory", "finished"], rows, caption=caption))


def _minute(stamp: str) -> str:
    """`2026-01-31T09:05:07+0100` → `2026-01-31 09:05 +0100`."""
    return f"{stamp[:10]} {stamp[11:16]} {stamp[19:]}"


def settings(run: RunFolder) -> str:
    """The whole resolved recipe, key by key; what differs from a default stands out."""
    mine, defaults = _flat(run.recipe), _flat(Recipe(name=run.recipe.name, model=run.recipe.model))
    changed = {key for key in mine if mine[key] != defaults.get(key)}
    groups: dict[str, list[str]] = {}
    for key in mine:
        section_name = key.partition(".")[0] if "." in key else "run"
        groups.setdefault(section_name, []).append(_setting(key, mine[key], key in changed))
    tables = "".join(
        f'<table><caption>{text(name)}</caption><thead><tr><th scope="col">key</th><th scope="col">value</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
        for name, rows in groups.items()
    )
    note = f"The whole resolved recipe: {len(mine)} settings. The {len(changed)} in bold differ from their default."
    yaml = block(dump_recipe(run.recipe), label="recipe.yaml")
    return section(
        "Every setting",
        paragraph(note),
        f'<div class="columns">{tables}</div>',
        f"<details><summary>The same as recipe.yaml</summary>{yaml}</details>",
    )


def _setting(key: str, value: Any, changed: bool) -> str:
    start = '<tr class="changed">' if changed else "<tr>"
    return f'{start}<th scope="row">{text(key)}</th><td class="wrap">{text(_shown(value))}</td></tr>'


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def add(value: Mapping[str, Any], prefix: str) -> None:
        for key, item in value.items():
            if isinstance(item, dict):
                add(item, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = item

    add(recipe.model_dump(mode="json", exclude={"name", "description"}), "")
    return flat


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case list():
            return ", ".join(map(str, value)) or "none"
        case float():
            return f"{value:g}"
    return str(value)


def grading(findings: Findings) -> str:
    """Isolation and limits of the grader, and how far its tests can be trusted."""
    grader, problems = findings.arms["base"]["grader"], findings.arms["base"]["problems"]
    limits = grader.get("limits", {})
    rows = [["isolation", grader["tier"]]]
    rows += [[f"refused: {name}", reason] for name, reason in (grader.get("refused_tiers") or {}).items()]
    named = {"cpu_s": "CPU seconds a test", "wall_s": "seconds a test", "memory_mib": "memory in MiB"}
    named["output_mib"] = "output in MiB"
    rows += [[f"limit: {named.get(key, key)}", f"{value:g}"] for key, value in limits.items()]
    rows += [
        [key, grader[key]] for key in ("python", "landlock_abi", "seccomp", "workers") if grader.get(key) is not None
    ]
    weak = grader.get("weak_problems") or []
    rows.append(["problems whose check is weak", f"{len(weak)}" + (f": {', '.join(weak[:10])}" if weak else "")])
    if problems.get("golden"):
        rows.append(["golden solutions", problems["golden"]])
    return section("Grader", table(["fact", "value"], rows, caption="How the programs were run and judged.", wide=1))


def commands(run: RunFolder) -> str:
    """What to type to repeat the run, whole or stage by stage."""
    name = shlex.quote(run.path.absolute().name)
    again = shlex.quote(f"{run.path.absolute().name}-again")
    stages = "\n".join(f"ssd-lite {stage} {again}" for stage in stages_of(run.recipe))
    return section(
        "Repeat it",
        paragraph("From the folder that holds this run:"),
        block(f"ssd-lite run {name}/recipe.yaml --out {again}", label="Command for the whole run", code=True),
        paragraph("Stage by stage, in a run folder that run has made; a stage that is done is skipped:"),
        block(stages, label="Commands for each stage", code=True),
    )


def versions(run: RunFolder, findings: Findings) -> str:
    """Program versions, and the hashes of the models and problem sets."""
    model, sampled = findings.manifest.get("model", {}), findings.summary("sample")
    rows: list[list[object]] = [["ssd_lite", findings.manifest.get("ssd_lite", __version__)]]
    if findings.manifest.get("ssd_lite", __version__) != __version__:
        rows.append(["ssd_lite that wrote this page", __version__])
    rows.append(["Python", platform.python_version()])
    rows += [[name, version] for name, version in findings.summary("train").get("versions", {}).items()]
    rows += [["base model", model.get("name", run.recipe.model.name)]]
    names = {"revision": "commit of the base", "note": "about the base"}
    rows += [[label, model[key]] for key, label in names.items() if model.get(key)]
    if teacher := findings.manifest.get("teacher"):
        rows += [["teacher, whose samples were trained on", teacher["name"]]]
        rows += [["teacher: SHA-256 of the weights", teacher["weights_sha256"]]]
    for arm in ARMS:
        report = findings.arms[arm]
        kind = f", {report['gguf_type']}" if report.get("gguf_type") else ""
        rows.append([f"{arm}: engine", f"{report['engine']}{kind}, seed {report['seed']}"])
        rows.append([f"{arm}: SHA-256 of the weights", report["model_sha256"]])
    trained_on = sampled.get("problems") or findings.summary("train").get("problems")
    sets = {"training set": trained_on, "evaluation set": findings.arms["base"]["problems"]}
    for label, problems in sets.items():
        if problems:
            rows.append([f"{label}: {problems['name']}", f"{problems['count']} problems, SHA-256 {problems['sha256']}"])
    rows.append(["run made", findings.manifest.get("created", "–")])
    return section("Versions and hashes", table(["fact", "value"], rows, caption="What the result stands on.", wide=1))
