"""The tables of docs/plan.md and docs/hardware.md that the plan itself makes: `python tests/plan_tables.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ssd_lite.plan import sampling_memory as sampling
from ssd_lite.plan import training_memory as training
from ssd_lite.plan.cards import CPU, cards
from ssd_lite.plan.estimate import Plan, gib
from ssd_lite.plan.estimate import plan as estimate
from ssd_lite.plan.shapes import Shape, from_config, packaged_shape
from ssd_lite.recipe import Train
from ssd_lite.recipe_file import load_recipe, packaged_recipes
from ssd_lite.stages.plan import find_model, load_of
from ssd_lite.stages.plan_words import time_words

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
WIDE = {
    "model_type": "llama", "torch_dtype": "float32", "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 8, "head_dim": 96, "num_attention_heads": 8, "num_key_value_heads": 8,
}  # fmt: skip


def measured_cases() -> dict[str, dict[str, Any]]:
    """What tests/bench/plan_memory.py measured, by name."""
    return dict(json.loads((DATA / "plan_memory.json").read_text(encoding="utf-8")))


def planned_bytes(case: dict[str, Any]) -> int:
    """What the plan says for a measured configuration."""
    shape = from_config(WIDE, "wide") if case["model"] == "wide" else packaged_shape(case["model"])
    assert shape is not None
    match case["stage"]:
        case "train":
            settings = Train(
                method=case.get("method", "lora"),
                lora_r=case.get("r", 16),
                gradient_checkpointing=case["checkpointing"],
            )
            return sum(training.training_terms(shape, settings, case["rows"] * case["length"], on_card=False).values())
        case "sample":
            length = case["prompt"] + case["new"]
            if case["engine"] == "hf":
                return sum(sampling.hf_terms(shape, case["rows"], case["prompt"], length, on_card=False).values())
            return sum(sampling.llama_terms(shape, case["rows"], length, "f16", on_card=False).values())
        case _:
            return sampling.merge_host_bytes(shape)


def published() -> dict[str, Any]:
    """Published figures, their sources and the shapes of their models."""
    return dict(json.loads((DATA / "published_memory.json").read_text(encoding="utf-8")))


def planned_for(row: dict[str, Any], shape: Shape) -> int:
    """What our formulas say for a published figure, made comparable by its `kind`.

    torch: the framework's own peak, without the CUDA context. card_all_logits: a whole card, with a loss that keeps all
    logits (bfloat16, float32, log-softmax and two gradients: 16 bytes). card_offloaded: a whole card, nothing kept
    between layers. weights: the base alone.
    """
    settings = Train(method="qlora", lora_r=row["lora_r"], optim=row["optim"])
    terms = training.training_terms(shape, settings, row["tokens"], on_card=True)
    whole = sum(terms.values())
    match row["kind"]:
        case "torch":
            return whole - training.CONTEXT_BYTES
        case "card_all_logits":
            return whole - terms.get("logits", 0) + 16 * row["tokens"] * shape.vocabulary
        case "card_offloaded":
            return whole - int((1 + training.FRAGMENTATION) * row["tokens"] * shape.layers * shape.hidden * 4)
        case _:
            return terms["weights"]


def error(planned: int, measured: int) -> str:
    return f"{100 * (planned / measured - 1):+.0f} %".replace("-", "−")


def measured_table() -> str:
    lines = ["| configuration | measured, MiB | plan, MiB | error | |", "|---|---|---|---|---|"]
    for name, case in measured_cases().items():
        planned, found = planned_bytes(case), case["peak_rss_bytes"]
        note = "constant read from it" if case.get("fit") else ""
        lines.append(f"| `{name}` | {found / 2**20:,.0f} | {planned / 2**20:,.0f} | {error(planned, found)} | {note} |")
    return "\n".join(lines)


def published_table() -> str:
    facts = published()
    shapes = {name: from_config(config, name) for name, config in facts["shapes"].items()}
    lines = ["| source | figure | published | plan | error | why |", "|---|---|---|---|---|---|"]
    for row in facts["rows"]:
        planned = planned_for(row, shapes[row["shape"]])
        figures = f"{gib(row['published_bytes'])} | {gib(planned)} | {error(planned, row['published_bytes'])}"
        lines.append(f"| {row['source']} | {row['what']} | {figures} | {row['note']} |")
    return "\n".join(lines)


def recipe_plans() -> dict[str, dict[str, Plan]]:
    """Every shipped recipe on the machine without a card and on every card."""
    found = {}
    for name in packaged_recipes():
        recipe = load_recipe(name)
        model, load = find_model(recipe)[0], load_of(recipe, None)
        found[name] = {key: estimate(recipe, model, load, on) for key, on in {"cpu": CPU, **cards()}.items()}
    return found


def recipes_table() -> str:
    lines = [
        "| recipe | card | fits | sample | train | evaluate | host | disk | time: sample, train, evaluate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, plans in recipe_plans().items():
        for key, plan in plans.items():
            if key == "cpu" and plan.recipe.train.method == "qlora":
                continue  # months
            stages = [plan.stages[stage] for stage in ("sample", "train", "evaluate")]
            peaks = " | ".join(gib(stage.gpu_peak_bytes) if stage.gpu_peak_bytes else "-" for stage in stages)
            times = ", ".join(" to ".join(map(time_words, stage.seconds)) for stage in stages)
            fits = "yes" if plan.fits else "**no**"
            sizes = f"{gib(plan.host_peak_bytes)} | {gib(plan.disk_peak_bytes)}"
            lines.append(f"| `{name}` | {key} | {fits} | {peaks} | {sizes} | {times} |")
    return "\n".join(lines)


TABLES = {
    (ROOT / "docs" / "plan.md", "measured"): measured_table,
    (ROOT / "docs" / "plan.md", "published"): published_table,
    (ROOT / "docs" / "hardware.md", "recipes"): recipes_table,
}


def between(text: str, name: str) -> re.Match[str]:
    """The part of a page between its two marks."""
    found = re.search(rf"(<!-- table {name}: [^\n]*-->\n)(.*?)(\n<!-- end of {name} -->)", text, re.DOTALL)
    assert found is not None, f"no marks for the table {name}"
    return found


def main() -> None:
    for (page, name), table in TABLES.items():
        text = page.read_text(encoding="utf-8")
        found = between(text, name)
        page.write_text(text[: found.start(2)] + table() + text[found.end(2) :], encoding="utf-8")


if __name__ == "__main__":
    main()
