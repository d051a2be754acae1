"""The stage that samples: the frozen base model, or a teacher, answers the training prompts into samples.jsonl."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from ssd_lite.problems.named import load_problems
from ssd_lite.problems.overlap import refuse_overlap
from ssd_lite.records import SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import Answering, answer, take
from ssd_lite.stages.base_model import base_model, check_gguf, teacher_model
from ssd_lite.stages.correctness import require_gradable
from ssd_lite.stages.cut_off import cap_warnings
from ssd_lite.stages.evaluation.guard import guard_problems
from ssd_lite.stages.weights import base_weights, model_weights


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
    refuse_overlap(problems, [*evaluation.problems, *guard_problems(recipe)])
    if recipe.curate.only_correct:
        require_gradable(run, problems)
    if not run.samples.is_file():
        check_gguf(recipe, base_model(run))
        _refuse_untrainable(run)
    how = _answering(run)
    summary = answer(problems, how, run.samples, "sample")
    summary |= {
        "problems": {"name": train.name, "count": len(problems), "sha256": train.sha256, "note": train.note},
        "engine": how.engine,
        "warnings": [
            *_warnings(how.settings, recipe.sample.teacher),
            *cap_warnings(
                "samples",
                summary["cut_off"],
                summary["samples"],
                how.settings.max_new_tokens,
                "sample.max_new_tokens",
            ),
        ],
    }
    run.finish("sample", summary, time.monotonic() - started)
    return summary


def _refuse_untrainable(run: RunFolder) -> None:
    """Raise UserError now for a model that training or merging would refuse after hours of sampling.

    A GGUF is not asked: its folder is written here, under plain names. Nor is a machine that cannot train.
    """
    source, libraries = base_model(run), ("torch", "transformers", "accelerate", "peft")
    if source.folder is None or any(importlib.util.find_spec(library) is None for library in libraries):
        return
    from ssd_lite.engines.training.peft_model import check_trainable

    check_trainable(source.folder, run.recipe.train)


def _answering(run: RunFolder) -> Answering:
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.sampling.choice import choose_engine

    recipe = run.recipe
    engine, teacher = choose_engine(recipe.sample.engine), teacher_model(run)
    if teacher is None:
        model = base_weights(run, engine)
    else:
        gguf = recipe.server.takes_gguf(engine)
        model = model_weights(teacher, engine, recipe.model.gguf_type, recipe.threads, gguf=gguf)
    return Answering(
        engine=engine,
        folder=model.folder,
        weights=model.file,
        model_hash=model.sha256,
        settings=recipe.sample.settings(recipe.sample.max_new_tokens),
        n=recipe.sample.n,
        seed=recipe.sample.seed,
        batch_size=recipe.sample.batch_size,
        threads=recipe.threads,
        gguf_type=model.gguf_type,
        targets_file=run.targets if recipe.sample.keeps_targets else None,
        student=hf_folder(base_model(run)) if teacher else None,
        enable_thinking=recipe.model.enable_thinking,
        server=recipe.server,
    )


def _warnings(settings: SamplingSettings, teacher: str | None) -> list[str]:
    if teacher is not None:
        return [f"The samples are those of another model ({teacher}): this is distillation, not SSD."]
    if settings.top_k == 0 and settings.top_p == 1.0 and settings.min_p == 0.0:
        return [
            "Without truncation SSD ideally only changes the temperature, which decoding could do without training "
            "(set sample.top_k or sample.top_p)."
        ]
    return []
