"""The check after merging: is the merged model the one that was trained? Which texts, which bound, and what to do."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.progress import duration
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.report_findings import evenly_spaced

if TYPE_CHECKING:
    from ssd_lite.engines.checks.merge_check import Agreement
    from ssd_lite.engines.scoring.scorer import Text

MOST_POSITIONS = 64
"""Positions of a completion, its first ones: a merge that is wrong is wrong at all of them."""
CANDIDATES = 4
"""Of so many times the rows that are wanted those with the shortest prompts are read, which bounds the time."""
BOUNDS = {"lora": (0.005, 0.97), "qlora": (0.1, 0.9)}
"""Most KL in nats a token and least share of equal first tokens, by train.method.

What rounding and quantising alone do to Llama-3-8B on Wikitext, by llama.cpp's tables (tools/perplexity/README.md):
float16 for bfloat16 0.00003 nats and 99.7 % equal first tokens, q8_0 0.0014 and 97.7 %, q6_K 0.0055 and 96.0 %, q4_K_M
0.0313 and 91.9 %, q4_0 0.0719, q3_K_M 0.1019, q2_K 0.4451 and 71.1 %. Adding an adapter to the weights it was trained
on costs rounding, so it must stay under what six bits cost; the slack is for bfloat16 arithmetic on a card, which was
not measured. Moving it from the NF4 base to the original one costs about what NF4 costs; more than any usual 4-bit type
says that the adapter leans on errors of its quantised base, which the merged model no longer has.
"""

_NOT_FINITE = (
    "The merged model, or the trained one, gives numbers that are not finite: do not use it. Train again with a lower "
    "train.learning_rate."
)


def check_merge(run: RunFolder, base: Path) -> dict[str, Any]:
    """Compare run.merged with base + adapter as trained; `base` is the base's folder. A KL is None if not finite.

    {"prompts", "positions", "kl", "kl_worst", "same_first", "bounds", "bad", "advice"}, or {"skipped": why}.
    """
    recipe = run.recipe
    reason = _reason_to_skip(run)
    if reason is not None:
        return {"skipped": reason}
    from ssd_lite.engines.checks.merge_check import agreement, lacks_memory

    lack = lacks_memory(run.merged)
    if lack is not None:
        return {"skipped": lack}
    texts = _texts(run)
    if not texts:
        return {"skipped": "the run kept no sample to read"}
    found = agreement(base, run.adapter, run.merged, recipe.train.method, texts, recipe.threads)
    return _judged(found, len(texts), recipe.train.method, recipe.merge.base, recipe.merge.dtype)


def _reason_to_skip(run: RunFolder) -> str | None:
    recipe = run.recipe
    if recipe.merge.check_prompts == 0:
        return "merge.check_prompts is 0"
    if recipe.train.method == "full":
        return "all weights were trained, so there is no base + adapter to compare with"
    wanted = ["torch", "transformers", "peft", *(["bitsandbytes"] if recipe.train.method == "qlora" else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        extra = "qlora" if recipe.train.method == "qlora" else "train"
        return f'{", ".join(missing)} is not installed (pip install "ssd-lite[{extra}]")'
    return None


def _texts(run: RunFolder) -> list[Text]:
    """Prompt and start of the completion of some training rows; under GRPO, which keeps none, prompts alone."""
    from ssd_lite.engines.checks.merge_check import positions_each
    from ssd_lite.engines.weights.model_folder import read_json

    wanted = run.recipe.merge.check_prompts
    pairs = _rewarded_prompts(run, wanted) if run.recipe.train.grpo is not None else _training_rows(run, wanted)
    config = read_json(run.merged / "config.json")
    vocabulary = int(config.get("text_config", config)["vocab_size"])
    most = positions_each(len(pairs), vocabulary, MOST_POSITIONS)
    return [_text(prompt, completion[:most]) for prompt, completion in pairs]


def _text(prompt: list[int], completion: list[int]) -> Text:
    import numpy as np

    from ssd_lite.engines.scoring.scorer import Text

    return Text(tuple(prompt), tuple(completion), np.arange(len(completion)))


def _training_rows(run: RunFolder, wanted: int) -> list[tuple[list[int], list[int]]]:
    if not run.train_rows.is_file():
        return []
    lines = run.train_rows.read_bytes().splitlines()
    rows = [json.loads(lines[index]) for index in evenly_spaced(len(lines), CANDIDATES * wanted)]
    rows.sort(key=lambda row: len(row["prompt_ids"]))
    return [(row["prompt_ids"], row["completion_ids"]) for row in rows[:wanted]]


def _rewarded_prompts(run: RunFolder, wanted: int) -> list[tuple[list[int], list[int]]]:
    """Prompts of the training problems, cut so that their last tokens are what is read."""
    from ssd_lite.engines.tokenizer import ChatTokenizer
    from ssd_lite.problems.named import load_problems
    from ssd_lite.prompts import render
    from ssd_lite.stages.answers import take

    recipe = run.recipe
    problems = take(load_problems(recipe.problems.train, role="train").problems, wanted, recipe.sample.seed)
    prompts = render(problems, ChatTokenizer.load(run.merged, recipe.model.enable_thinking))
    cuts = [max(1, len(prompt.ids) - MOST_POSITIONS) for prompt in prompts]
    return [(list(p.ids[:cut]), list(p.ids[cut:])) for p, cut in zip(prompts, cuts, strict=True)]


def _judged(found: Agreement, prompts: int, method: str, base: str, dtype: str) -> dict[str, Any]:
    most, least = BOUNDS["lora" if base == "dequantised" else method]
    bad = not (found.kl <= most and found.same_first >= least)
    finite = math.isfinite(found.kl) and math.isfinite(found.kl_worst)
    return {
        "prompts": prompts,
        "positions": found.positions,
        "kl": _kept(found.kl),
        "kl_worst": _kept(found.kl_worst),
        "same_first": round(found.same_first, 4),
        "bounds": {"kl": most, "same_first": least},
        "bad": bad or not finite,
        "advice": "" if finite and not bad else _advice(method, base, dtype) if finite else _NOT_FINITE,
    }


def _kept(value: float) -> float | None:
    """Four digits; None for what JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _advice(method: str, base: str, dtype: str) -> str:
    if method == "qlora" and base == "original":
        return (
            "The adapter leans on the NF4 base it was trained on. The evaluation measures the merged model; to keep to "
            "the NF4 base, delete merged/, set merge.base: dequantised in the run's recipe.yaml and merge again."
        )
    if dtype != "float32":
        return "The number format of the merged weights may be too coarse for the change: set merge.dtype: float32."
    return "The merged weights are not base + adapter: do not use them, and please report this."


def nats(value: float | None) -> str:
    """A KL for people; None is one that was not finite."""
    return "not finite" if value is None else f"{value:.2g}"


def _percent(check: Mapping[str, Any]) -> str:
    return f"{100 * check['same_first']:.1f}"


def check_lines(check: Mapping[str, Any]) -> list[str]:
    """The check for people: what was seen, and where that is bad a warning with what to do."""
    if not check:
        return []
    if "skipped" in check:
        return [f"merge check: left out, {check['skipped']}"]
    where = f"{check['positions']} positions of {check['prompts']} prompts"
    line = f"merge check: KL {nats(check['kl'])} nats a token, same likeliest token at {_percent(check)} % of {where}"
    line += f", {duration(check['seconds'])}" if "seconds" in check else ""
    if not check["bad"]:
        return [line]
    bounds = check["bounds"]
    limit = f"at most {bounds['kl']:g} and at least {100 * bounds['same_first']:.0f} % are expected"
    return [line, f"Warning: merged and trained model differ ({limit}). {check['advice']}"]
