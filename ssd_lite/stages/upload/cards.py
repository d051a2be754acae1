"""The README.md of each kind of thing that is pushed: YAML for the Hub, and what its reader must know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssd_lite import __version__
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.exports.later_exports import exported_files
from ssd_lite.stages.licences import PROMPTS, licence_fields, licence_of
from ssd_lite.stages.pages.model_card import TAGS, card, front_matter, origin

# Data sets of the Hub behind names of problem sets, for the front matter.
_HUB_SETS = {"mbpp": "google-research-datasets/mbpp", "rstar-coder": "microsoft/rStar-Coder"}


@dataclass(frozen=True)
class Results:
    """What `evaluate` found: figures of each arm by name, the verdict in words, and what it does not show."""

    figures: Mapping[str, Mapping[str, str]]
    verdict: str
    caveats: list[str]


def results(run: RunFolder) -> Results | None:
    """None before `evaluate` is done."""
    if run.done("evaluate") is None:
        return None
    from ssd_lite.stages.pages.page import card_figures
    from ssd_lite.stages.pages.words import caveats
    from ssd_lite.stages.report import verdict_words
    from ssd_lite.stages.report_findings import read_numbers

    findings, sample = read_numbers(run), run.recipe.sample
    null_arm = sample.temperature == 1.0 and sample.top_k == 0 and sample.top_p == 1.0
    return Results(card_figures(findings), verdict_words(findings), caveats(findings, null_arm=null_arm))


def base_facts(run: RunFolder) -> dict[str, Any]:
    """Name, kind, revision, hash, note and licence of the base; from the merge where that is done."""
    merged = run.done("merge")
    if merged is not None:
        return dict(merged["base"])
    from ssd_lite.engines.model_source import hf_folder

    source = base_model(run)
    facts = {key: getattr(source, key) for key in ("name", "kind", "revision", "weights_sha256", "note")}
    return {**facts, **licence_of(hf_folder(source))}


def model_text(run: RunFolder, what: str, repos: Mapping[str, str]) -> str:
    """The card of an adapter, a merged model or GGUF files; `repos` are the repositories of the same push, by kind."""
    base, found = base_facts(run), results(run)
    datasets = [_HUB_SETS.get(run.recipe.problems.train.partition(":")[0], ""), repos.get("samples", "")]
    front: dict[str, Any] = {"datasets": [name for name in datasets if name]}
    match what:
        case "adapter":
            front |= {"library_name": "peft", "base_model_relation": "adapter", "tags": [*TAGS, "lora"]}
        case "gguf":
            front |= {"library_name": "gguf", "tags": [*TAGS, "gguf"], "base_model_relation": "quantized"}
            front["base_model"] = repos.get("merged") or _hub_name(base)
        case _:
            front |= {"base_model_relation": "finetune"}
    if not (front.get("base_model") or _hub_name(base)):
        del front["base_model_relation"]
    merged = run.done("merge") or {"base": base}
    figures, verdict, caveats = (found.figures, found.verdict, found.caveats) if found else (None, "", [])
    return card(run, merged, figures, verdict, front=front, use=_use(run, what, base, repos), caveats=caveats)


def _hub_name(base: Mapping[str, Any]) -> str | None:
    return str(base["name"]) if base["kind"] == "hub" else None


def _use(run: RunFolder, what: str, base: Mapping[str, Any], repos: Mapping[str, str]) -> str:
    repo = repos[what]
    match what:
        case "adapter":
            return _use_adapter(run, base, repo)
        case "gguf":
            types = ", ".join(dict.fromkeys(file["type"] for file in exported_files(run)))
            return (
                f"Files for llama.cpp ({types}) and a `Modelfile` for Ollama, which holds the decoding below. In a "
                "folder with all of them: `ollama create NAME -f Modelfile`, or `ssd-lite chat FILE.gguf`."
            )
        case _:
            return _python(
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
                f'model = AutoModelForCausalLM.from_pretrained("{repo}")',
            ) + ("\n\nThen `generate(do_sample=True, …)` with the decoding below.")


def _use_adapter(run: RunFolder, base: Mapping[str, Any], repo: str) -> str:
    name = _hub_name(base) or "THE_BASE_MODEL"
    revision = f', revision="{base["revision"]}"' if base["revision"] else ""
    text = _python(
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{name}"{revision})',
        f'model = PeftModel.from_pretrained(base, "{repo}")',
    )
    if _hub_name(base) is None:
        text += "\n\nTHE_BASE_MODEL stands for a folder with the weights of the hash above; other copies may differ."
    if run.recipe.train.method == "qlora":
        text += (
            "\n\nIt was trained on the base in 4-bit NF4 with double quantisation (bitsandbytes). On the base in 16 "
            "bits, as above, it answers a little otherwise."
        )
    return text


def _python(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def samples_text(run: RunFolder, rows: int, kept: int | None) -> str:
    """The card of the samples as a data set: whose they are, under which law, what they are not."""
    recipe, sampled, base = run.recipe, run.require("sample"), base_facts(run)
    problems, name = sampled["problems"], recipe.problems.train
    head = name.partition(":")[0]
    licence = PROMPTS.get(head)
    front = {
        "license": licence,
        "task_categories": ["text-generation"],
        "size_categories": [_size(rows)],
        "source_datasets": [_HUB_SETS[head]] if head in _HUB_SETS else None,
        "tags": [*TAGS, "synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "samples.jsonl"}]}],
    }
    whose = f"Written by another model, `{recipe.sample.teacher}`." if recipe.sample.teacher else "Written by the base."
    trained = f" `kept` marks the {kept:,} that were trained on." if kept is not None else ""
    sections = [
        front_matter(front),
        f"# Samples of {recipe.name}\n\n{rows:,} completions of {problems['count']:,} prompts. {whose} {origin(base)}",
        "**Nothing was checked**: right and wrong programs stand side by side, none was run for this data set, and "
        f"{sampled.get('cut_off', 'some')} are cut off. They are what Simple Self-Distillation (arXiv 2604.01193) "
        f"trains on.{trained}",
        f"## Law\n\n{recipe.sample.words()}; at most {recipe.sample.max_new_tokens:,} tokens, {recipe.sample.n} a "
        f"prompt, seed {recipe.sample.seed}. `finish_reason` is `length` where a completion ran into the cap.",
        "## Fields\n\n" + _FIELDS,
        f"## Prompts\n\nSet `{name}`: {problems['note']}. SHA-256 of its source `{problems['sha256']}`.",
        f"## Recipe\n\nssd_lite {__version__}.\n\n```yaml\n{dump_recipe(recipe)}```",
        f"## Licence\n\n{_licence_of_samples(licence, base)}",
    ]
    return "\n\n".join(sections) + "\n"


_FIELDS = """| field | |
|---|---|
| `problem_id`, `index` | the prompt, and which of its completions |
| `prompt`, `prompt_ids` | as the model read it, chat template included |
| `completion`, `completion_ids` | as it was drawn; the ids end with the end token where `finish_reason` is `stop` |
| `finish_reason` | `stop` or `length` |
| `kept` | was it trained on? null before curating |
| `temperature`, `top_k`, `top_p`, `min_p`, `max_new_tokens` | the law; 0 and 1.0 are off |
| `seed`, `engine` | of this completion |
| `entropy_nats`, `survivors` | means over its tokens: entropy of the law, tokens that it left |"""


def _size(rows: int) -> str:
    """The Hub's classes."""
    for most, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if rows < most:
            return name
    return "1M<n<10M"


def _licence_of_samples(prompts: str | None, base: Mapping[str, Any]) -> str:
    of_prompts = f"the prompts are under {prompts}" if prompts else "the prompts have the licence of their source"
    of_base = base.get("license_name", base.get("license"))
    of_model = f"that of the model ({of_base})" if of_base else "that of the model, which names none in its files,"
    return f"Of the prompts and of the model both: {of_prompts}; {of_model} may bind what is done with its outputs."


def report_text(run: RunFolder, repos: Mapping[str, str]) -> str:
    """The card of the report, a static Space that shows report.html."""
    found = results(run)
    front = {
        "title": f"{run.recipe.name}, base against tuned",
        "sdk": "static",
        "app_file": run.report.name,
        "pinned": False,
        "models": [repos[what] for what in ("merged", "adapter", "gguf") if what in repos],
        "datasets": [repos["samples"]] if "samples" in repos else [],
        "tags": [*TAGS],
        **{key: value for key, value in licence_fields(base_facts(run)).items() if key == "license"},
    }
    verdict = found.verdict if found else "Not measured."
    return f"{front_matter(front)}\n\n# {run.recipe.name}\n\n{verdict}\n\nThe page is `{run.report.name}`.\n"
