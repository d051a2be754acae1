"""The stage that samples: the frozen base model answers the training prompts into samples.jsonl."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ssd_lite.problems.named import load_problems
from ssd_lite.problems.overlap import refuse_overlap
from ssd_lite.records import SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import Answering, answer, take
from ssd_lite.stages.base_model import base_model


def sample(run: RunFolder) -> dict[str, Any]:
    """Sample what is still missing. The summary counts samples, tokens, tok/s and problems, and warns where due."""
    done = run.done("sample")
    if done is not None and run.samples.is_file():
        return done
    started = time.monotonic()
    recipe = run.recipe
    train = load_problems(recipe.problems.train, role="train")
    evaluation = load_problems(recipe.problems.evaluate, role="evaluate")
    problems = take(train.problems, recipe.problems.train_limit, recipe.sample.seed)
    refuse_overlap(problems, evaluation.problems)
    how = _answering(run)
    summary = answer(problems, how, run.samples, "sample")
    summary |= {
        "problems": {"name": train.name, "count": len(problems), "sha256": train.sha256, "note": train.note},
        "engine": how.engine,
        "warnings": _warnings(how.settings),
    }
    run.finish("sample", summary, time.monotonic() - started)
    return summary


def _answering(run: RunFolder) -> Answering:
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.sampler import choose_engine

    recipe = run.recipe
    source = base_model(run)
    folder = hf_folder(source)
    engine = choose_engine(recipe.sample.engine)
    return Answering(
        engine=engine,
        folder=folder,
        weights=base_weights(engine, folder, run),
        model_hash=source.weights_sha256,
        settings=recipe.sample.settings(recipe.sample.max_new_tokens),
        n=recipe.sample.n,
        seed=recipe.sample.seed,
        batch_size=recipe.sample.batch_size,
        threads=recipe.threads,
        gguf_type=recipe.model.gguf_type if engine == "llama_cpp" else None,
        targets_file=run.targets if recipe.sample.keeps_targets else None,
    )


def base_weights(engine: str, folder: Path, run: RunFolder) -> Path:
    """What the engine loads for the base model: the folder, or its GGUF of model.gguf_type in the cache."""
    if engine == "hf":
        return folder
    from ssd_lite.engines.model_source import gguf_file

    return gguf_file(base_model(run), run.recipe.model.gguf_type, threads=run.recipe.threads)


def _warnings(settings: SamplingSettings) -> list[str]:
    if settings.top_k == 0 and settings.top_p == 1.0 and settings.min_p == 0.0:
        return [
            "Without truncation SSD ideally only changes the temperature, which decoding could do without training "
            "(set sample.top_k or sample.top_p)."
        ]
    return []
