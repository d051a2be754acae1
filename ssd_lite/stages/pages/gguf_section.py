"""Exported files for people: their table in the report and the model card, and their lines in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ssd_lite.stages.pages.guard_section import red
from ssd_lite.stages.pages.html import block, bullets, paragraph, section, table, text
from ssd_lite.stages.pages.words import bounds, percent, signed, size
from ssd_lite.stages.report_findings import ARMS, Findings

Checks = Mapping[str, Any]
_NOT_FINITE = "not finite"


def quantised(findings: Findings) -> str:
    """The section of a run's report; empty before `export` where no GGUF was evaluated."""
    exported = findings.summary("export")
    checks, arms = exported.get("checks") or {}, findings.summary("evaluate").get("gguf") or []
    if not checks and not arms:
        return ""
    rows = comparison_rows(findings)
    warned = [f'<div class="verdict loss"><p>{text(warning)}</p></div>' for warning in checks.get("warnings", [])]
    served = block(exported["server"], label="Command for llama.cpp", code=True) if exported.get("server") else ""
    return section(
        "As GGUF",
        *warned,
        paragraph(
            "Self-distillation reshapes the tails of the laws, which is what quantising disturbs. Each type that "
            "evaluate.gguf names answered the evaluation's problems as the arm tuned did, and each exported file was "
            "read on the same texts as the merged model."
        ),
        table(_head(findings), rows, caption=_caption(findings)),
        bullets([*(entry_line(entry) for entry in arms), *facts(checks)]),
        paragraph("Serve it with the decoding of the evaluation, from the folder gguf:") if served else "",
        served,
    )


def _head(findings: Findings) -> list[str]:
    passes = [f"pass@{k}" for k in findings.ks]
    return ["model", *passes, "against tuned", "KL to merged", "same best token", "perplexity", "size"]


def _caption(findings: Findings) -> str:
    smallest = findings.ks[0] if findings.ks else "1"
    return (
        f"pass@k with its 95 % interval; against tuned: paired difference in pass@{smallest}, in points. KL in nats a "
        "token at T = 1 over the whole vocabulary, ± its standard error over the texts."
    )


def comparison_rows(findings: Findings) -> list[list[str]]:
    """Base, tuned, and each type that was exported or evaluated; two rows where those are two files of one type."""
    checks = findings.summary("export").get("checks") or {}
    exported = {file["type"]: file for file in findings.summary("export").get("files", [])}
    arms = {entry["type"]: entry for entry in findings.summary("evaluate").get("gguf") or []}
    measured = checks.get("files") or {}
    rows = []
    for arm in ARMS:
        report = findings.arms[arm]
        perplexity = _perplexity(checks.get("reference") or {}) if arm == "tuned" else "–"
        kind = f" ({report['engine']}{', ' + report['gguf_type'] if report.get('gguf_type') else ''})"
        rows.append([f"{arm}{kind}", *_passes(findings, report), "–", "–", "–", perplexity, "–"])
    for gguf_type in dict.fromkeys([*arms, *measured, *exported]):
        entry, file = arms.get(gguf_type), exported.get(gguf_type)
        answered, read = _answered(findings, entry), _read(measured.get(gguf_type) or {}, file)
        names = (entry or {}).get("file"), PurePath(file["path"]).name if file is not None else None
        if all(names) and names[0] != names[1]:  # one with a matrix, one without
            rows.append([f"tuned as {gguf_type} ({names[0]})", *answered, *_read({}, None)])
            rows.append([f"tuned as {gguf_type} ({names[1]})", *_answered(findings, None), *read])
        else:
            rows.append([f"tuned as {gguf_type}", *answered, *read])
    return rows


def _answered(findings: Findings, entry: Mapping[str, Any] | None) -> list[str]:
    """Cells of what a file answered in the evaluation."""
    if entry is None:
        return ["–"] * (len(findings.ks) + 1)
    difference = "–"
    if findings.ks:
        difference = "the arm tuned" if entry["is_tuned"] else _paired(entry["difference"][findings.ks[0]])
    return [*_passes(findings, entry), difference]


def _read(found: Mapping[str, Any], file: Mapping[str, Any] | None) -> list[str]:
    """Cells of what the export's check measured, and of the file's size."""
    same = percent(found["same_top"]) if "same_top" in found else "–"
    return [_kl(found), same, _perplexity(found), size(file["bytes"]) if file is not None else "–"]


def _passes(findings: Findings, report: Mapping[str, Any]) -> list[str]:
    rates = [report["pass_at_k"][k] for k in findings.ks]
    return [f"{percent(rate['mean'])} {bounds(rate)}" for rate in rates]


def _paired(difference: Mapping[str, float]) -> str:
    return f"{signed(100 * difference['mean'])} {bounds(difference, signed)}"


def _kl(found: Mapping[str, Any]) -> str:
    if "kl" not in found:
        return "–"
    if found["kl"] is None:
        return _NOT_FINITE
    return f"{found['kl']:.4f}" + (f" ± {found['kl_error']:.4f}" if found.get("kl_error") is not None else "")


def _perplexity(found: Mapping[str, Any]) -> str:
    if "perplexity" not in found:
        return "–"
    return _NOT_FINITE if found["perplexity"] is None else f"{found['perplexity']:.3f}"


def entry_line(entry: Mapping[str, Any]) -> str:
    """What an evaluated type shows, in one sentence."""
    if entry["is_tuned"]:
        return f"{entry['type']} is the very file that the arm tuned ran."
    return f"{entry['type']} against tuned: {entry['sentence']}"


def facts(checks: Checks) -> list[str]:
    """What was compared with what, in sentences; empty where nothing was checked."""
    if not checks:
        return []
    lines = [_template_line(checks)]
    if "files" in checks:
        lines += [_texts_line(checks), *(line for name in checks["files"] if (line := _ended_line(checks, name)))]
    return lines


def _template_line(checks: Checks) -> str:
    template = checks["template"]
    if template is None:
        return "The model has no chat template."
    refused = f", {template['refused']} are refused by both" if template["refused"] else ""
    return (
        f"Chat template: {template['equal']} of {template['equal'] + template['refused']} conversations print as under "
        f"{template['reference']}, with the same tokens in llama.cpp{refused}."
    )


def _texts_line(checks: Checks) -> str:
    reference, texts = checks["reference"], checks["texts"]
    if not reference["measured"]:
        return f"KL and perplexity were not measured: {reference['words']}."
    return (
        f"Read on {texts['count']} {texts['words']} ({texts['tokens']:,} tokens), against {reference['words']}; its "
        f"perplexity is {_perplexity(reference)}."
    )


def _ended_line(checks: Checks, gguf_type: str) -> str:
    found = checks["files"][gguf_type]
    if "prompts" not in found:
        return ""
    thinking = f", {found['still_thinking']} were still thinking" if found["still_thinking"] else ""
    return f"{gguf_type}: {found['ended']} of {found['prompts']} short prompts ended by themselves{thinking}."


def check_lines(checks: Checks) -> list[str]:
    """One line each for the terminal; warnings are red, which a terminal shows and a file does not."""
    if not checks:
        return []
    lines = [_template_line(checks)]
    if "files" in checks:
        lines.append(_texts_line(checks))
        lines += [line for name, found in checks["files"].items() if (line := _file_line(checks, name, found))]
    return [f"check: {line}" for line in lines] + [red(f"check: {warning}") for warning in checks["warnings"]]


def _file_line(checks: Checks, gguf_type: str, found: Mapping[str, Any]) -> str:
    ended = _ended_line(checks, gguf_type).removeprefix(f"{gguf_type}: ")
    if "kl" not in found:
        return f"{gguf_type}: {ended}" if ended else ""
    best, perplexity = percent(found["same_top"]), _perplexity(found)
    distance = f"KL {_kl(found)}, same best token {best}, perplexity {perplexity}"
    return f"{gguf_type}: {distance}; {ended}" if ended else f"{gguf_type}: {distance}."


def terminal_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line an evaluated type, a loss against the arm tuned in red."""
    lines = []
    for entry in entries:
        line = f"as {entry_line(entry)}"
        lines.append(red(line) if entry["verdict"] == "loss" and not entry["is_tuned"] else line)
    return lines


def card_text(exported: Mapping[str, Any]) -> str:
    """The part of the model card about the GGUFs: what was measured and how to serve them. Empty before `export`."""
    if not exported.get("server"):
        return ""
    checks = exported.get("checks") or {}
    measured = (checks.get("files") or {}).items()
    rows = [
        f"| {name} | {_kl(found)} | {percent(found['same_top'])} | {_perplexity(found)} |"
        for name, found in measured
        if "kl" in found
    ]
    head = "| type | KL to the merged model, nats a token | same best token | perplexity |\n|---|---|---|---|"
    figures = "\n".join([head, *rows]) + "\n\n" if rows else ""
    said = "\n".join(f"- {line}" for line in [*facts(checks), *checks.get("warnings", [])])
    served = f"```sh\n{exported['server']}\n```"
    return f"{figures}{said}\n\n{served}\n\nModelfile, LM Studio preset and more: `gguf/SERVING.md`."
