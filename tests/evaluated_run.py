"""An evaluated run folder made by hand for the tests of the report: real arithmetic on drawn verdicts, no model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ssd_lite.journal import Journal
from ssd_lite.recipe import Model, Recipe
from ssd_lite.recipe_measuring import Evaluate
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import FinishReason, Grade, Problem, Sample, to_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.evaluation.arm_report import arm_numbers, compare

HOSTILE = (
    '<script>document.title = "run by the model"</script>\n</pre>\x1b[31mred\x1b[0m \u202egnol\n```python\nx < 1 & 2\n'
)


def make_run(folder: Path, *, base_rate: float = 0.3, tuned_rate: float = 0.3, tuned_t: float = 0.6) -> RunFolder:
    """An evaluated run of 30 problems with 5 samples each, drawn with the given rates on top of the tier's."""
    evaluate = Evaluate(n=5, base=Decoding(temperature=0.6), tuned=Decoding(temperature=tuned_t), max_new_tokens=256)
    recipe = Recipe(name="r1", model=Model(name="smollm2-135m-instruct"), evaluate=evaluate)
    run = RunFolder.create(folder, recipe)
    run.note("model", {"name": "m<b>", "kind": "packaged", "revision": None, "weights_sha256": "ab" * 32, "note": "n"})
    _finish_stages(run)
    problems = [
        Problem(f"p/{n}", ({"role": "user", "content": "?"},), difficulty=("easy", "medium", "hard")[n % 3])
        for n in range(30)
    ]
    reports = {arm: _write_arm(run, arm, problems, rate) for arm, rate in (("base", base_rate), ("tuned", tuned_rate))}
    comparison = compare(reports["base"], reports["tuned"], 1)
    (run.path / "evaluations" / "comparison.json").write_text(json.dumps(comparison))
    with Journal(run.metrics, lambda record: record["step"]) as journal:
        journal.append({"step": n, "loss": 0.9 + 0.5 / n, "seconds": 1.0} for n in range(1, 61))
    return run


def _finish_stages(run: RunFolder) -> None:
    problem_set = {"name": "starter", "count": 150, "sha256": "ef" * 32, "note": "written here"}
    run.finish("sample", {"samples": 150, "tokens": 20_000, "problems": problem_set}, 100.0)
    dropped = {"empty": 1, "stub": 2, "cut_off": 30, "too_long": 0, "duplicate": 3, "shortest": 0}
    counts = {"prompt_tokens": 9_000, "trained_tokens": 12_345, "longest": 400}
    run.finish("curate", {"samples": 150, "rows": 114, "dropped": dropped, **counts}, 1.5)
    run.finish(
        "train", {"steps": 60, "tokens_trained": 12_345, "versions": {"torch": "9.9.9"}, "peak_rss_bytes": 2 << 30}, 185
    )
    run.merged.mkdir()
    base = {"name": "b", "kind": "packaged", "revision": None, "weights_sha256": "ab" * 32, "note": "n"}
    change = {"changed_tensors": 210, "max_abs_change": 0.01, "change_norm": 1.5, "dtype": "bfloat16", "base": base}
    (run.merged / "ssd_lite_merge.json").write_text(json.dumps(change))
    run.finish("merge", change, 4.0)
    run.finish("evaluate", {"verdict": "?"}, 200.0)


def _write_arm(run: RunFolder, arm: str, problems: list[Problem], rate: float) -> dict[str, Any]:
    rng = random.Random(arm)
    settings = getattr(run.recipe.evaluate, arm)
    law = settings.settings(256)
    samples, grades = [], []
    for problem in problems:
        for index in range(5):
            length = min(256, int(rng.lognormvariate(4.4 if arm == "base" else 4.2, 0.5)))
            finish: FinishReason = "length" if length == 256 else "stop"
            text = HOSTILE + f"def f():\n    return {index}\n```\nPerhaps."
            ids = tuple(range(length))
            entropy = rng.uniform(0.1, 0.6)
            samples.append(
                Sample(problem.id, index, (1, 2), ids, text, finish, entropy, index, law, "llama_cpp", "cd" * 32)
            )
            chance = rate + {"easy": 0.3, "medium": 0.0, "hard": -0.25}[str(problem.difficulty)]
            passed = rng.random() < chance
            grades.append(
                Grade(problem.id, index, "pass" if passed else "wrong_answer", "" if passed else "got <i>3</i>")
            )
    for path, records in ((run.arm(arm).samples, samples), (run.arm(arm).grades, grades)):
        with Journal(path, lambda record: (record["problem_id"], record["index"])) as journal:
            journal.append(to_json(record) for record in records)
    numbers = arm_numbers(problems, samples, grades, ks=[1, 5], seed=1, block="last")
    limits = {"cpu_s": 2.0, "wall_s": 6.0, "memory_mib": 1024, "output_mib": 8}
    body = {
        "arm": arm,
        "model": "m",
        "model_sha256": ("ab" if arm == "base" else "cd") * 32,
        "engine": "llama_cpp",
        "gguf_type": "q8_0",
        "settings": {"temperature": law.temperature, "top_k": law.top_k, "top_p": law.top_p, "max_new_tokens": 256},
        "seed": 1,
        "n": 5,
        "k": [1, 5],
        "problems": {"name": "starter", "count": 30, "sha256": "12" * 32, "note": "", "golden": "all pass"},
        "grader": {"tier": "bubblewrap", "python": "3.11.2", "limits": limits, "workers": 2, "weak_problems": []},
        **numbers,
        "tokens": sum(numbers["lengths"]),
        "seconds": 90.0,
    }
    run.arm(arm).report.write_text(json.dumps(body))
    return body
