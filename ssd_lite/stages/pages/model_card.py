"""The model card of a merged model: what it came from, how it was made, how to decode it, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ssd_lite import __version__
from ssd_lite.atomic import write_text
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.licences import licence_fields
from ssd_lite.stages.merge_check import check_lines
from ssd_lite.stages.pages.gguf_section import card_text

TAGS = ("ssd-lite", "self-distillation")


def write_card(run: RunFolder, evaluation: Mapping[str, Any] | None, verdict: str = "") -> None:
    """Write merged/README.md.

    `evaluation` has an arm's name → its figures by name (numbers or texts), if measured; `verdict` says in words what
    they show and over which problems.
    """
    merged = json.loads((run.merged / "ssd_lite_merge.json").read_text(encoding="utf-8"))
    write_text(run.merged / "README.md", card(run, merged, evaluation, verdict))


def card(
    run: RunFolder,
    merged: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    verdict: str = "",
    *,
    front: Mapping[str, Any] | None = None,
    use: str = "",
    caveats: Sequence[str] = (),
) -> str:
    """The text of the card; `merged` is the summary of the merge stage, of an adapter alone only its key `base`.

    `front` are further fields of the front matter, `use` is a section's text that says how to load what the card
    describes, `caveats` what the verdict does not show.
    """
    base, recipe = merged["base"], run.recipe
    stages = run.manifest().get("stages", {})
    sections = [
        front_matter({**_front(base), **(front or {})}),
        f"# {recipe.name}\n\n{origin(base)} {_method(recipe)}",
        *([f"## How to use it\n\n{use}"] if use else []),
        "## Decoding\n\n" + _decoding(run),
        "## How it was made\n\n" + _counts(stages, merged),
        "## Evaluation\n\n" + _evaluation(evaluation, verdict),
        *(["What it does not show:\n\n" + "\n".join(f"- {line}" for line in caveats)] if caveats else []),
        *_gguf(stages),
        f"## Recipe\n\nssd_lite {__version__}. `ssd-lite run recipe.yaml` with this file repeats it:\n\n"
        f"```yaml\n{dump_recipe(recipe)}```",
        "## Licence\n\n" + _licence(base),
    ]
    return "\n\n".join(sections) + "\n"


def _gguf(stages: Mapping[str, Any]) -> list[str]:
    said = card_text(stages.get("export", {}).get("summary", {}))
    return [f"## GGUF\n\n{said}"] if said else []


def _method(recipe: Recipe) -> str:
    if recipe.train.grpo is not None:
        return (
            "It was trained by GRPO (arXiv 2402.03300) with TRL: it answered problems, and a completion whose program "
            "passed the problem's tests was rewarded. This is not SSD, but a control for it."
        )
    if recipe.sample.teacher is None and not recipe.curate.only_correct:
        return (
            "It was fine-tuned on its own samples (Simple Self-Distillation, arXiv 2604.01193): sampled at a raised "
            "temperature, nothing checked for correctness, cross-entropy on the sampled tokens."
        )
    # The last part of a path alone: a card is published, a disk's layout is not.
    teacher = None if recipe.sample.teacher is None else recipe.sample.teacher.rstrip("/").rsplit("/", 1)[-1]
    whose = "its own samples" if teacher is None else f"the samples of another model, `{teacher}` (distillation)"
    which = "those that pass their problems' tests" if recipe.curate.only_correct else "right and wrong ones alike"
    return f"It was fine-tuned on {whose}, {which}, with cross-entropy on the sampled tokens. This is not SSD."


def front_matter(fields: Mapping[str, Any]) -> str:
    """The YAML block that the Hub reads at the top of a README.md; fields without a value are left out."""
    values = {key: value for key, value in fields.items() if value not in (None, "", [])}
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000) + "---"


def _front(base: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **licence_fields(base),
        "base_model": base["name"] if base["kind"] == "hub" else None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*TAGS],
    }


def origin(base: Mapping[str, Any]) -> str:
    name = base["name"] if base["kind"] in ("hub", "packaged") else base["name"].rstrip("/").rsplit("/", 1)[-1]
    revision = f" at commit `{base['revision']}`" if base["revision"] else ""
    return f"Base: `{name}`{revision} ({base['note']}; SHA-256 of its weights `{base['weights_sha256']}`)."


def _decoding(run: RunFolder) -> str:
    tuned = run.recipe.evaluate.tuned
    no_min_p = "" if tuned.min_p else "no min-p, "
    return f"{tuned.words()}, in this order; {no_min_p}no penalties. Other settings are another model."


def _counts(stages: Mapping[str, Any], merged: Mapping[str, Any]) -> str:
    rows = []
    for stage in ("sample", "curate", "train"):
        summary = stages.get(stage, {}).get("summary", {})
        counts = [f"{key} {_number(value)}" for key, value in summary.items() if _is_plain(value)]
        if counts:
            rows.append(f"| {stage} | {', '.join(counts)} |")
    if "changed_tensors" in merged:
        onto = " onto the dequantised NF4 base" if merged.get("onto") == "dequantised" else ""
        rows.append(
            f"| merge | {merged['changed_tensors']} tensors changed{onto}, at most "
            f"{_number(merged['max_abs_change'])}, norm of the change {_number(merged['change_norm'])}, "
            f"{merged['dtype']} |"
        )
    check = {**stages.get("merge", {}).get("summary", {}).get("check", {})}
    check.pop("seconds", None)
    rows += [f"| merged against trained | {line.removeprefix('merge check: ')} |" for line in check_lines(check)]
    return "| stage | counts |\n|---|---|\n" + "\n".join(rows)


def _evaluation(evaluation: Mapping[str, Any] | None, verdict: str) -> str:
    """The figures as rows and the arms as columns: a card is narrow."""
    if not evaluation:
        return "Not measured."
    names = list(dict.fromkeys(key for figures in evaluation.values() for key in figures))
    head = f"| | {' | '.join(evaluation)} |\n|---|{'---|' * len(evaluation)}\n"
    rows = [
        f"| {name} | {' | '.join(_number(figures.get(name, '')) for figures in evaluation.values())} |"
        for name in names
    ]
    return (f"{verdict}\n\n" if verdict else "") + head + "\n".join(rows)


def _licence(base: Mapping[str, Any]) -> str:
    if "license" in base:
        return f"That of the base: {base.get('license_name', base['license'])}."
    return "The base names no licence in its files; its terms pass on to this model."


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not (isinstance(value, str) and len(value) > 40)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
