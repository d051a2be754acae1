"""The stage that evaluates: base and tuned answer the same problems, each under its decoding, and are compared."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssd_lite.atomic import write_json
from ssd_lite.errors import UserError
from ssd_lite.grading.extract import Block
from ssd_lite.grading.grader import Grader
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Decoding, Evaluate
from ssd_lite.records import SamplingSettings
from ssd_lite.run_folder import ArmFolder, RunFolder
from ssd_lite.stages.answers import Answering, take
from ssd_lite.stages.arm import Arm, describe
from ssd_lite.stages.arm_report import compare
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.grade import check_golden


def evaluate(run: RunFolder) -> dict[str, Any]:
    """Evaluate both arms and write evaluations/ARM/report.json and evaluations/comparison.json; skips what is done."""
    done = run.done("evaluate")
    if done is not None and run.comparison.is_file():
        return done
    run.require("merge")
    started = time.monotonic()
    settings = run.recipe.evaluate
    chosen = load_problems(run.recipe.problems.evaluate, role="evaluate")
    problems = take(chosen.problems, run.recipe.problems.evaluate_limit, settings.seed)
    reports = {}
    with Grader(settings.sandbox) as grader:
        golden = check_golden(grader, problems)
        for name, decoding in (("base", settings.base), ("tuned", settings.tuned)):
            how = _answering(run, name, decoding)
            arm = Arm(run.arm(name), problems, how, settings.k, settings.block)
            reports[name] = arm.evaluate(grader, describe(chosen, problems, golden), _model_name(run, name))
    comparison = compare(reports["base"], reports["tuned"], settings.seed)
    write_json(run.comparison, comparison)
    summary = {
        "verdict": comparison["verdict"],
        "sentence": comparison["sentence"],
        "difference": comparison["pass_at_k"],
        "arms": {name: _headline(report) for name, report in reports.items()},
        "grading_tier": reports["base"]["grader"]["tier"],
        "golden": golden,
    }
    run.finish("evaluate", summary, time.monotonic() - started)
    return summary


def _headline(report: dict[str, Any]) -> dict[str, Any]:
    keys = ("pass_at_k", "no_code_rate", "cap_rate", "mean_tokens", "samples", "tokens", "seconds")
    return {key: report[key] for key in keys}


def _model_name(run: RunFolder, arm: str) -> str:
    return run.recipe.model.name if arm == "base" else f"{run.recipe.model.name} + {run.recipe.name}"


def _answering(run: RunFolder, arm: str, decoding: Decoding) -> Answering:
    from ssd_lite.engines.sampler import choose_engine

    settings = run.recipe.evaluate
    engine = choose_engine(settings.engine)
    if arm == "base":
        from ssd_lite.engines.model_source import hf_folder
        from ssd_lite.stages.sample import base_weights

        source = base_model(run)
        folder, digest = hf_folder(source), source.weights_sha256
        weights = base_weights(engine, folder, run)
    else:
        from ssd_lite.stages.export import tuned_gguf

        folder, digest = run.merged, run.require("merge")["weights_sha256"]
        weights = folder if engine == "hf" else tuned_gguf(run, run.recipe.model.gguf_type)
    return Answering(
        engine=engine,
        folder=folder,
        weights=weights,
        model_hash=digest,
        settings=SamplingSettings(decoding.temperature, decoding.top_k, decoding.top_p, settings.max_new_tokens),
        n=settings.n,
        seed=settings.seed,
        batch_size=settings.batch_size,
        threads=run.recipe.threads,
        gguf_type=run.recipe.model.gguf_type if engine == "llama_cpp" else None,
    )


@dataclass(frozen=True)
class StandAlone:
    """An evaluation without a run: `ssd-lite evaluate --model M --problems SET …`. Defaults are the recipe's."""

    model: str
    problems: str
    decoding: Decoding
    out: Path
    revision: str | None = None
    gguf_type: str = "f16"
    n: int = Evaluate().n
    ks: Sequence[int] = field(default_factory=lambda: Evaluate().k)
    max_new_tokens: int = Evaluate().max_new_tokens
    engine: Literal["auto", "hf", "llama_cpp"] = "auto"
    seed: int = Evaluate().seed
    batch_size: int = Evaluate().batch_size
    block: Block = "last"
    sandbox: Literal["auto", "bubblewrap", "landlock", "none"] = "auto"
    limit: int | None = None
    threads: int | None = None


def evaluate_model(wanted: StandAlone) -> dict[str, Any]:
    """Evaluate one model on one set into `wanted.out`/{samples,grades}.jsonl and report.json; goes on after a kill."""
    from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model
    from ssd_lite.engines.sampler import choose_engine

    if max(wanted.ks) > wanted.n:
        raise UserError(f"pass@{max(wanted.ks)} needs --n of at least {max(wanted.ks)}.", where="--n")
    chosen = load_problems(wanted.problems, role="evaluate")
    problems = take(chosen.problems, wanted.limit, wanted.seed)
    source = resolve_model(wanted.model, wanted.revision)
    folder, engine = hf_folder(source), choose_engine(wanted.engine)
    weights = folder if engine == "hf" else source.gguf or gguf_file(source, wanted.gguf_type, threads=wanted.threads)
    decoding = wanted.decoding
    how = Answering(
        engine=engine,
        folder=folder,
        weights=weights,
        model_hash=source.weights_sha256,
        settings=SamplingSettings(decoding.temperature, decoding.top_k, decoding.top_p, wanted.max_new_tokens),
        n=wanted.n,
        seed=wanted.seed,
        batch_size=wanted.batch_size,
        threads=wanted.threads,
        gguf_type=None if engine == "hf" else "as in the file" if source.gguf else wanted.gguf_type,
    )
    _remember(wanted, how)
    with Grader(wanted.sandbox) as grader:
        golden = check_golden(grader, problems)
        arm = Arm(ArmFolder(wanted.out), problems, how, wanted.ks, wanted.block)
        return arm.evaluate(grader, describe(chosen, problems, golden), wanted.model)


def _remember(wanted: StandAlone, how: Answering) -> None:
    """Refuse to mix two evaluations in one folder: their settings must be those of the first."""
    file = wanted.out / "settings.json"
    settings = {
        "model_sha256": how.model_hash,
        "problems": wanted.problems,
        "limit": wanted.limit,
        "n": wanted.n,
        "seed": wanted.seed,
        "engine": how.engine,
        "temperature": how.settings.temperature,
        "top_k": how.settings.top_k,
        "top_p": how.settings.top_p,
        "max_new_tokens": how.settings.max_new_tokens,
        "block": wanted.block,
        "gguf_type": how.gguf_type,
    }
    try:
        wanted.out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_json(file, settings)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}.", where=str(wanted.out)) from error
    old = json.loads(file.read_text(encoding="utf-8"))
    changed = [f"{key}: {old.get(key)!r} → {value!r}" for key, value in settings.items() if old.get(key) != value]
    if changed:
        raise UserError(
            f"holds an evaluation with other settings ({'; '.join(changed)}).",
            where=str(wanted.out),
            next_step="Name another --out.",
        )
