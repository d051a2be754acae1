"""The stage that diagnoses: what a model does at each position of its own samples, and what training changed there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ssd_lite.atomic import write_json, write_text
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.answers import Answering, answer, read_samples, take
from ssd_lite.stages.diagnosis.figures import Task, figures
from ssd_lite.stages.diagnosis.reading import MOST_SAMPLES, in_drawn_order
from ssd_lite.stages.pages.diagnosis_section import page_of
from ssd_lite.stages.weights import Weights, base_weights, model_weights, tuned_weights

REPORT, PAGE = "diagnosis.json", "diagnosis.html"


def diagnose_model(recipe: Recipe, out: Path, limit: int | None = None) -> dict[str, Any]:
    """Sample `recipe.model` under section sample, without a run, and diagnose it on these samples.

    Writes `out`/samples.jsonl, reference.jsonl, diagnosis.json and diagnosis.html. Samples that are there are read
    again; those made otherwise are refused.
    """
    from ssd_lite.engines.model_source import resolve_model
    from ssd_lite.engines.sampling.choice import choose_engine

    chosen = load_problems(recipe.problems.train, role="train")
    problems = take(chosen.problems, MOST_SAMPLES if limit is None else limit, recipe.sample.seed)
    source = resolve_model(recipe.model.name, recipe.model.revision)
    engine = choose_engine(_reading_engine(recipe))
    gguf = recipe.server.takes_gguf(engine)
    base = model_weights(source, engine, recipe.model.gguf_type, recipe.threads, gguf=gguf)
    how = _answering(recipe, base)
    answer(problems, how, out / "samples.jsonl", "sample")
    samples = read_samples(out / "samples.jsonl")
    note = f"{chosen.name}, {len(problems)} of {len(chosen.problems)} problems"
    reference = recipe.evaluate.base.settings(recipe.sample.max_new_tokens)
    task = Task(recipe.model.name, out, samples, problems, how, base, None, None, reference, note)
    return _write(task, figures(task))


def diagnose_run(run: RunFolder, limit: int | None = None) -> dict[str, Any]:
    """Diagnose the base of a run on the run's own samples, and after `merge` the tuned model on the same tokens.

    Writes diagnosis.json and diagnosis.html into the run, and diagnosis/reference.jsonl. Raises UserError before
    `sample` is done.
    """
    from ssd_lite.engines.sampling.choice import choose_engine

    run.require("sample")
    recipe = run.recipe
    engine = choose_engine(_reading_engine(recipe))
    base = base_weights(run, engine)
    drawn = in_drawn_order(read_samples(run.samples), recipe.sample.seed)
    samples = drawn[: MOST_SAMPLES if limit is None else limit]
    problems = {problem.id: problem for problem in load_problems(recipe.problems.train, role="train").problems}
    note = f"{len(samples)} of the run's {len(drawn)} samples"
    if recipe.sample.teacher:
        note += f", written by {recipe.sample.teacher} and not by the base"
        problems = {}  # a reference would compare two models, not two temperatures
    out = run.path / "diagnosis"
    out.mkdir(exist_ok=True)
    task = Task(
        recipe.name,
        out,
        samples,
        [problems[name] for name in dict.fromkeys(sample.problem_id for sample in drawn) if name in problems],
        _answering(recipe, base),
        base,
        None if run.done("merge") is None else tuned_weights(run, engine),
        recipe.evaluate.tuned.settings(recipe.sample.max_new_tokens),
        recipe.evaluate.base.settings(recipe.sample.max_new_tokens),
        note,
    )
    return _write(task, figures(task), run.path)


def _reading_engine(recipe: Recipe) -> Literal["auto", "hf", "llama_cpp"]:
    """The engine that reads laws, which a server does not tell in full."""
    return "auto" if recipe.sample.engine == "server" else recipe.sample.engine


def _answering(recipe: Recipe, model: Weights) -> Answering:
    sample = recipe.sample
    return Answering(
        engine=model.engine,
        folder=model.folder,
        weights=model.file,
        model_hash=model.sha256,
        settings=sample.settings(sample.max_new_tokens),
        n=1,
        seed=sample.seed,
        batch_size=sample.batch_size,
        threads=recipe.threads,
        gguf_type=model.gguf_type,
        enable_thinking=recipe.model.enable_thinking,
    )


def _write(task: Task, report: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    folder = folder or task.out
    write_json(folder / REPORT, report)
    write_text(folder / PAGE, page_of(report))
    return report
