"""What the results of a comparison stand on, noted once in its folder; results of anything else are not mixed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_json
from ssd_lite.errors import UserError
from ssd_lite.grading.tiers import choose_tier
from ssd_lite.problem_tests import AnswerTest
from ssd_lite.problems.named import load_problems
from ssd_lite.recipe import Recipe
from ssd_lite.records import Problem
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.comparison.plan import TrainedRun
from ssd_lite.stages.comparison.sets import SPLITS, problems_of, set_names, training_sets

FILE = "made_with.json"
NEXT_STEP = "Put back what was there, or name another folder with --out."
Note = Mapping[str, Any]


def read(path: Path) -> dict[str, Any] | None:
    """The note of the comparison at `path`; None where there is none yet. UserError where it is damaged."""
    try:
        return dict(json.loads((path / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"is damaged ({error}).", where=str(path / FILE), next_step=NEXT_STEP) from error


def write(path: Path, note: Note) -> None:
    """Keep the note."""
    write_json(path / FILE, note)


def evaluated_with(recipe: Recipe) -> dict[str, Any]:
    """What evaluations stand on, as it is now: each set's SHA-256, problems and sandbox, the engines, the GGUF type."""
    from ssd_lite.engines.sampling.choice import choose_engine

    loaded = {name: problems_of(recipe, name) for name in set_names(recipe)}
    tier = _tier(recipe, [problem for problems, _ in loaded.values() for problem in problems])
    engine = choose_engine(recipe.evaluate.engine)
    sets = {
        name: {
            "name": about["name"],
            "sha256": about["sha256"],
            "count": len(problems),
            "ids_sha256": digest_of(problem.id for problem in problems),
            "tier": tier if _runs_programs(problems) else "no programs",
        }
        for name, (problems, about) in loaded.items()
    }
    return {
        "sets": sets,
        "engine": engine,
        "gguf_type": recipe.model.gguf_type if recipe.server.takes_gguf(engine) else None,
    }


def trained_with(recipe: Recipe, runs: Sequence[TrainedRun], noted: Note) -> dict[str, Any]:
    """What trainings stand on: SHA-256 of every training set, what samples, and the models, at `noted` Hub commits."""
    from ssd_lite.engines.model_source import resolve_model
    from ssd_lite.engines.sampling.choice import choose_engine

    wanted = {"model": (recipe.model.name, recipe.model.revision, "model.name")}
    if any(trained.arm == "distill" for trained in runs):
        wanted["teacher"] = (str(recipe.compare.teacher), None, "compare.teacher")
    models = {}
    for role, (name, revision, key) in wanted.items():
        before = noted.get(role)
        source = resolve_model(name, before["revision"] if before else revision, key)
        facts = ("name", "kind", "revision", "weights_sha256", "note")
        models[role] = {fact: getattr(source, fact) for fact in facts}
    return {
        "training_sets": {name: found.sha256 for name, found in training_sets(runs).items()},
        "sampling_engine": choose_engine(recipe.sample.engine),
        "models": models,
    }


def _tier(recipe: Recipe, problems: Sequence[Problem]) -> str | None:
    if not _runs_programs(problems):
        return None
    tier, sandbox, _ = choose_tier(recipe.evaluate.sandbox)
    sandbox.close()
    return tier


def _runs_programs(problems: Sequence[Problem]) -> bool:
    """As `open_grader` decides it."""
    return not all(isinstance(problem.test, AnswerTest) for problem in problems)


def digest_of(ids: Iterable[str]) -> str:
    """SHA-256 of problem ids in their order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def merged(noted: Note | None, now: Note) -> dict[str, Any]:
    """The note with what is new in `now`: sets that were added, and what the first writer did not look at."""
    old = dict(noted or {})
    parts = {key: {**old.get(key, {}), **now.get(key, {})} for key in ("sets", "training_sets", "models")}
    return {**old, **now, **{key: part for key, part in parts.items() if part}}


def refuse(where: Path, changed: Sequence[str]) -> None:
    """Raise UserError where something is not what the comparison's results stand on."""
    if changed:
        raise UserError(
            f"the results of this comparison would be mixed with those of other settings: {'; '.join(changed)}.",
            where=str(where),
            next_step=NEXT_STEP,
        )


def changes(noted: Note, now: Note) -> list[str]:
    """What is not as it was noted, in words."""
    old, new = _words(noted), _words(now)
    return [f"{key}: {value} → {new[key]}" for key, value in old.items() if key in new and new[key] != value]


def _words(note: Note) -> dict[str, str]:
    found = {}
    for name, about in note.get("sets", {}).items():
        split = f"{name} split" if name in SPLITS else name
        found[f"SHA-256 of the set {about['name']}"] = about["sha256"][:12]
        found[f"problems of the {split}"] = f"{about['count']} ({about['ids_sha256'][:8]})"
        found[f"sandbox of the {split}"] = about["tier"]
    for key, words in (("engine", "engine of evaluation"), ("sampling_engine", "engine of sampling")):
        if key in note:
            found[words] = note[key]
    if "gguf_type" in note:
        found["GGUF type"] = str(note["gguf_type"])
    found |= {f"SHA-256 of the training set {n}": sha[:12] for n, sha in note.get("training_sets", {}).items()}
    found |= {f"weights of the {role}": about["weights_sha256"][:12] for role, about in note.get("models", {}).items()}
    return found


def report_changes(note: Note, report: Mapping[str, Any]) -> list[str]:
    """What an arm's report was made with other than the note says; a set that is not noted is not looked at."""
    key = report["problems"].get("split") or _noted_as(note, report["problems"]["name"])
    about = note["sets"].get(key)
    if about is None:
        return []
    ids = [row["problem_id"] for row in report["per_problem"]]
    made = {
        "sets": {
            key: {
                "name": about["name"],
                "sha256": report["problems"]["sha256"],
                "count": len(ids),
                "ids_sha256": digest_of(ids),
                "tier": report["grader"]["tier"],
            }
        },
        "engine": report["engine"],
        "gguf_type": report["gguf_type"],
    }
    if report["model"] == "base":
        made["models"] = {"model": {"weights_sha256": report["model_sha256"]}}
    return changes(made, note)


def _noted_as(note: Note, name: str) -> str | None:
    """The recipe's name of a further set that reports call `name`: that of LiveCodeBench shows its whole window."""
    return next((key for key, about in note["sets"].items() if key not in SPLITS and about["name"] == name), None)


def run_changes(note: Note, run: RunFolder) -> list[str]:
    """What a trained run was made with other than the note says."""
    manifest = run.manifest()
    stages = manifest.get("stages", {})
    made: dict[str, Any] = {"models": {}}
    for role in note.get("models", {}):
        named = role == "model" or run.recipe.sample.teacher == note["models"][role]["name"]
        if named and role in manifest:
            made["models"][role] = manifest[role]
    sampled = stages.get("sample", {}).get("summary", {})
    if "engine" in sampled:
        made["sampling_engine"] = sampled["engine"]
    found = sampled.get("problems") or stages.get("train", {}).get("summary", {}).get("problems")
    if found:
        made["training_sets"] = {run.recipe.problems.train: found["sha256"]}
    return changes(made, note)


def hold_training_set(note: Note, run: RunFolder) -> None:
    """Raise UserError where the training set is another one than that which the other arms were trained on."""
    name = run.recipe.problems.train
    now = {"training_sets": {name: load_problems(name, role="train").sha256}}
    refuse(run.path, changes(note, now))
