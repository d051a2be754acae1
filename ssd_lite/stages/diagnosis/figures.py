"""The figures of a diagnosis: reads the samples with each model and gathers what diagnosis.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.errors import UserError
from ssd_lite.records import Problem, Sample, SamplingSettings
from ssd_lite.stages.answers import Answering, answer, read_samples
from ssd_lite.stages.diagnosis.advice import advise
from ssd_lite.stages.diagnosis.reading import REFERENCE_SAMPLES, LawSet, generations, law_set, read
from ssd_lite.stages.weights import Weights

if TYPE_CHECKING:
    from ssd_lite.engines.scoring.position_facts import Facts

FORMAT = 1


@dataclass(frozen=True)
class Task:
    """What is read: the samples and how they were made, who reads them, and where the reference goes.

    `problems` are those a reference may be made of, at the settings `reference`; `evaluation` is the tuned model's law.
    """

    name: str
    out: Path
    samples: Sequence[Sample]
    problems: Sequence[Problem]
    how: Answering
    base: Weights
    tuned: Weights | None
    evaluation: SamplingSettings | None
    reference: SamplingSettings
    note: str


@dataclass(frozen=True)
class _Read:
    """Completions and the base's facts of each; empty where there are none."""

    samples: Sequence[Sample]
    facts: Sequence[Facts]


def figures(task: Task) -> dict[str, Any]:
    """The whole report. Raises UserError where there is nothing to read, Stopped after a signal."""
    from ssd_lite.engines.scoring.measures import of_model, thresholds
    from ssd_lite.engines.scoring.position_facts import joined

    if not task.samples:
        raise UserError("there are no samples to read.", where=str(task.out), next_step="Sample some problems first.")
    laws = law_set(task.how.settings, task.evaluation)
    own = _Read(task.samples, read(task.base, task.samples, laws, "read with the base", threads=task.how.threads))
    reference = _reference(task)
    report: dict[str, Any] = {
        "format": FORMAT,
        "name": task.name,
        "state": "base" if task.tuned is None else "base and tuned",
        "samples": len(task.samples),
        "note": task.note,
        "engine": task.base.engine,
        "gguf_type": task.base.gguf_type,
        "base_sha256": task.base.sha256,
        "tuned_sha256": task.tuned.sha256 if task.tuned else None,
        "seed": task.how.seed,
        "law": asdict(task.how.settings),
        "evaluate_law": asdict(task.evaluation) if task.evaluation else None,
        "base_temperature": task.reference.temperature,
        "thresholds": thresholds(),
        "generations": _generations(task, own, reference),
        "models": {"base": of_model(joined(own.facts), laws.laws, laws.curves)},
        "between": None,
        "between_reference": None,
    }
    if task.tuned is not None:
        _after_training(report, task, task.tuned, own, reference)
    return {**report, "advice": advise(report)}


def _after_training(report: dict[str, Any], task: Task, tuned: Weights, own: _Read, reference: _Read) -> None:
    """Add the tuned model: on the samples it was trained on, and on the reference, which it has not seen."""
    from ssd_lite.engines.scoring.measures import between, of_model
    from ssd_lite.engines.scoring.position_facts import joined

    laws = law_set(task.how.settings, task.evaluation)
    facts = read(tuned, own.samples, laws, "read with the tuned model", threads=task.how.threads, ask=own.facts)
    report["models"]["tuned"] = of_model(joined(facts), laws.laws, laws.curves)
    report["between"] = between(joined(own.facts), joined(facts))
    if reference.samples:
        laws = LawSet((task.how.settings,), {})
        facts = read(
            tuned, reference.samples, laws, "read the reference with it", threads=task.how.threads, ask=reference.facts
        )
        report["between_reference"] = between(joined(reference.facts), joined(facts))


def _reference(task: Task) -> _Read:
    """Answers at the base's decoding to the first problems, of which those count whose own samples are read."""
    problems = list(task.problems)[:REFERENCE_SAMPLES]
    answer(problems, replace(task.how, settings=task.reference), task.out / "reference.jsonl", "reference")
    wanted = {sample.problem_id for sample in task.samples}
    samples = [one for one in read_samples(task.out / "reference.jsonl") if one.problem_id in wanted]
    samples.sort(key=lambda sample: sample.key)
    return _Read(
        samples,
        read(task.base, samples, LawSet((task.how.settings,), {}), "read the reference", threads=task.how.threads),
    )


def _generations(task: Task, own: _Read, reference: _Read) -> dict[str, Any]:
    """All own completions; and those of the reference's problems beside the reference."""
    alike: dict[str, Any] = {"own": generations(own.samples, own.facts), "paired": None, "reference": None}
    answered = {sample.problem_id for sample in reference.samples}
    paired = [pair for pair in zip(own.samples, own.facts, strict=True) if pair[0].problem_id in answered]
    if not paired:
        return alike
    samples, facts = zip(*paired, strict=True)
    beside = {"temperature": task.reference.temperature, **generations(reference.samples, reference.facts)}
    return {**alike, "paired": generations(samples, facts), "reference": beside}
