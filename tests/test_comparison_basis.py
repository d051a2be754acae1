"""What a comparison stands on is noted once; results of other sets, weights, engines or sandboxes are not mixed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_lite.atomic import DONE_FILE, write_json
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import load_recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock
from ssd_lite.stages.compare import Work
from ssd_lite.stages.comparison import basis
from ssd_lite.stages.comparison.arms import evaluate_arms
from ssd_lite.stages.comparison.folder import ComparisonFolder
from ssd_lite.stages.comparison.plan import ArmOrder, trained_runs
from ssd_lite.stages.comparison.sets import problems_of

T6 = Decoding(temperature=0.6)
BASE_TEST = ArmOrder("base", T6, "test")
SHA = "5" * 64


def write_set(path: Path, count: int = 10, start: int = 0, add: int = 0) -> Path:
    """Questions `What is n plus n?`; their answers are off by `add`."""
    lines = [
        {"id": f"q{n}", "prompt": f"What is {n} plus {n}?", "tests": {"kind": "answer", "answer": str(2 * n + add)}}
        for n in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def recipe_in(folder: Path, *settings: str) -> Recipe:
    named = (f"problems.train={folder / 'train.jsonl'}", f"problems.evaluate={folder / 'eval.jsonl'}")
    engines = ("sample.engine=llama_cpp", "evaluate.engine=llama_cpp", "evaluate.n=2", "evaluate.k=[1]")
    return load_recipe("quickstart", [*named, *engines, "problems.train_limit=null", *settings])


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    """A comparison of ten questions, trained on four others."""
    write_set(tmp_path / "eval.jsonl")
    write_set(tmp_path / "train.jsonl", 4, start=100)
    return ComparisonFolder.create(tmp_path / "c", recipe_in(tmp_path))


def now(folder: ComparisonFolder) -> dict[str, Any]:
    """What the comparison stands on, with weights that nobody has to have here."""
    models = {"model": {"name": "m", "revision": None, "weights_sha256": SHA}}
    sets = {name: found.sha256 for name, found in basis.training_sets(trained_runs(folder.recipe)).items()}
    trained = {"models": models, "training_sets": sets, "sampling_engine": "llama_cpp"}
    return basis.evaluated_with(folder.recipe) | trained


def report_of(folder: ComparisonFolder, order: ArmOrder = BASE_TEST, **other: Any) -> dict[str, Any]:
    """A report as an evaluation leaves it, but for `other`."""
    problems, about = problems_of(folder.recipe, order.problems)
    rows = [{"problem_id": problem.id, "difficulty": None, "n": 2, "passed": 1} for problem in problems]
    about = about | {"golden": "", "sha256": other.pop("sha256", about["sha256"])}
    made = {"engine": "llama_cpp", "gguf_type": "q8_0", "grader": {"tier": "no programs"}, "n": 2, "model_sha256": SHA}
    return {"model": order.model, "problems": about, "per_problem": rows, "pass_at_k": {}, "tokens": 9, **made, **other}


def keep(folder: ComparisonFolder, report: dict[str, Any], order: ArmOrder = BASE_TEST) -> Path:
    files = folder.arm(order)
    files.path.mkdir(parents=True, exist_ok=True)
    files.report.write_text(json.dumps(report))
    return files.report


# -- the sets --------------------------------------------------------------------------------------------------------


def test_the_same_settings_go_on_and_the_note_stays_as_it_was(folder: ComparisonFolder) -> None:
    folder.settle(now(folder))
    noted = (folder.path / basis.FILE).read_bytes()
    keep(folder, report_of(folder))
    folder.settle(now(folder))
    assert (folder.path / basis.FILE).read_bytes() == noted
    found = folder.report_of(BASE_TEST)
    assert found is not None
    assert found["tokens"] == 9


def test_other_answers_in_the_evaluation_file_are_refused_by_name(folder: ComparisonFolder, tmp_path: Path) -> None:
    folder.settle(now(folder))
    before = now(folder)["sets"]["test"]["sha256"]
    write_set(tmp_path / "eval.jsonl", add=1)
    with pytest.raises(UserError, match=r"SHA-256 of the set .*eval\.jsonl: .* Put back what was there.*--out"):
        folder.settle(now(folder))
    write_set(tmp_path / "eval.jsonl")
    folder.settle(now(folder))
    assert (basis.read(folder.path) or {})["sets"]["test"]["sha256"] == before


def test_further_problems_would_move_the_split_and_are_refused(folder: ComparisonFolder, tmp_path: Path) -> None:
    folder.settle(now(folder))
    write_set(tmp_path / "eval.jsonl", 20)
    with pytest.raises(UserError, match=r"problems of the dev split: 4 \(.*problems of the test split: 6 \("):
        folder.settle(now(folder))


def test_a_further_set_is_noted_when_it_is_added_and_held_to_from_then(
    folder: ComparisonFolder, tmp_path: Path
) -> None:
    folder.settle(now(folder))
    extra = write_set(tmp_path / "extra.jsonl", 3, start=50)
    more = ComparisonFolder.create(folder.path, recipe_in(tmp_path, f"compare.extra_sets=[{extra}]"))
    more.settle(now(more))
    assert list((basis.read(folder.path) or {})["sets"]) == ["dev", "test", str(extra)]
    write_set(extra, 3, start=50, add=1)
    with pytest.raises(UserError, match=r"SHA-256 of the set .*extra\.jsonl"):
        more.settle(now(more))


def test_a_report_on_a_further_set_is_held_to_also_where_it_names_the_whole_window(
    folder: ComparisonFolder, tmp_path: Path
) -> None:
    cases = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    texts = {"question_content": "Add one.", "public_test_cases": cases, "private_test_cases": "[]"}
    days = {"a": "2025-01-04T00:00:00", "b": "2025-02-08T00:00:00"}
    rows = [{**texts, "question_id": name, "question_content": name, "contest_date": day} for name, day in days.items()]
    (tmp_path / "test6.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    extra = f"livecodebench:{tmp_path / 'test6.jsonl'}:2025-02-01.."
    more = ComparisonFolder.create(folder.path, recipe_in(tmp_path, f"compare.extra_sets=['{extra}']"))
    note = now(more)
    order = ArmOrder("base", T6, extra)
    assert problems_of(more.recipe, extra)[1]["name"] == f"{extra}2025-02-08"
    grader = {"tier": note["sets"][extra]["tier"]}
    assert basis.report_changes(note, report_of(more, order, grader=grader)) == []
    (change,) = basis.report_changes(note, report_of(more, order, grader=grader, sha256="0" * 64))
    assert change.startswith(f"SHA-256 of the set {extra}2025-02-08: 000000000000 → ")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["evaluate.engine=hf"], ("hf", None)),
        (["evaluate.engine=llama_cpp"], ("llama_cpp", "q8_0")),
        (["evaluate.engine=server", "server.command='llama-server -m {gguf} --port {port}'"], ("server", "q8_0")),
        (["evaluate.engine=server", "server.command='vllm serve {model} --port {port}'"], ("server", None)),
    ],
)
def test_the_type_of_gguf_is_noted_where_one_answers(
    folder: ComparisonFolder, tmp_path: Path, settings: list[str], expected: tuple[str, str | None]
) -> None:
    found = basis.evaluated_with(recipe_in(tmp_path, *settings))
    assert (found["engine"], found["gguf_type"]) == expected


def test_only_further_sets_may_be_added(folder: ComparisonFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compare\.extra_n: 1 → 4"):
        ComparisonFolder.create(folder.path, recipe_in(tmp_path, "compare.extra_n=4"))


# -- reports ---------------------------------------------------------------------------------------------------------

OTHERS = [
    ({"sha256": "0" * 64}, r"SHA-256 of the set .*eval\.jsonl: 000000000000 → "),
    ({"engine": "hf"}, "engine of evaluation: hf → llama_cpp"),
    ({"gguf_type": "f16"}, "GGUF type: f16 → q8_0"),
    ({"grader": {"tier": "landlock"}}, "sandbox of the test split: landlock → no programs"),
    ({"model_sha256": "7" * 64}, "weights of the model: 777777777777 → 555555555555"),
    ({"per_problem": [{"problem_id": "q0"}]}, "problems of the test split: 1 "),
]


@pytest.mark.parametrize(("other", "words"), OTHERS)
def test_a_report_that_was_made_otherwise_is_not_read(
    folder: ComparisonFolder, other: dict[str, Any], words: str
) -> None:
    folder.settle(now(folder))
    keep(folder, report_of(folder, **other))
    with pytest.raises(UserError, match=words):
        folder.report_of(BASE_TEST)


@pytest.mark.parametrize(("other", "words"), OTHERS)
def test_a_folder_without_a_note_takes_it_only_where_its_results_fit(
    folder: ComparisonFolder, other: dict[str, Any], words: str
) -> None:
    file = keep(folder, report_of(folder, **other))
    with pytest.raises(UserError, match=words):
        folder.settle(now(folder))
    assert basis.read(folder.path) is None, "what cannot be right is not noted: the old file may come back"
    file.write_text(json.dumps(report_of(folder)))
    folder.settle(now(folder))
    assert basis.read(folder.path) is not None


def test_a_report_of_fewer_completions_goes_on_and_one_of_more_is_refused(folder: ComparisonFolder) -> None:
    keep(folder, report_of(folder, n=1))
    assert folder.report_of(BASE_TEST) is None
    keep(folder, report_of(folder, n=3))
    with pytest.raises(UserError, match="completions a problem: 3 → 2"):
        folder.report_of(BASE_TEST)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n": 2}'])
def test_a_broken_report_is_made_again(folder: ComparisonFolder, text: str) -> None:
    keep(folder, report_of(folder)).write_text(text)
    folder.settle(now(folder))
    assert folder.report_of(BASE_TEST) is None


def test_a_report_of_weights_that_were_trained_anew_is_refused(folder: ComparisonFolder) -> None:
    trained = trained_runs(folder.recipe)[0]
    run = folder.run(trained)
    run.finish("merge", {"weights_sha256": "8" * 64}, 1.0)
    order = ArmOrder(trained.name, T6, "test")
    keep(folder, report_of(folder, order, model_sha256="8" * 64), order)
    assert folder.report_of(order) is not None
    run.finish("merge", {"weights_sha256": "9" * 64}, 1.0)
    with pytest.raises(UserError, match="weights of ssd-0: 888888888888 → 999999999999"):
        folder.report_of(order)


def test_a_damaged_note_is_an_error_of_the_user(folder: ComparisonFolder) -> None:
    (folder.path / basis.FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        folder.settle(now(folder))


# -- trained runs ----------------------------------------------------------------------------------------------------


def sampled(folder: ComparisonFolder, **other: Any) -> RunFolder:
    """The first run with its samples drawn, but for `other`."""
    run, train = folder.run(trained_runs(folder.recipe)[0]), folder.recipe.problems.train
    note = now(folder)
    problems = {"name": train, "sha256": other.get("sha256", note["training_sets"][train])}
    run.note("model", {"weights_sha256": other.get("weights", SHA), "revision": None})
    run.finish("sample", {"engine": other.get("engine", "llama_cpp"), "problems": problems}, 1.0)
    return run


OTHER_RUNS = [
    ({"sha256": "0" * 64}, r"SHA-256 of the training set .*train\.jsonl: 000000000000 → "),
    ({"engine": "hf"}, "engine of sampling: hf → llama_cpp"),
    ({"weights": "7" * 64}, "weights of the model: 777777777777 → 555555555555"),
]


@pytest.mark.parametrize(("other", "words"), OTHER_RUNS)
def test_a_run_that_was_trained_otherwise_is_not_compared(
    folder: ComparisonFolder, other: dict[str, Any], words: str
) -> None:
    run = sampled(folder, **other)
    with pytest.raises(UserError, match=words):
        folder.settle(now(folder))
    with pytest.raises(UserError, match=words):
        basis.refuse(run.path, basis.run_changes(now(folder), run))
    assert basis.run_changes(now(folder), sampled(folder)) == []


def test_another_training_file_is_refused_at_the_start_and_before_the_next_arm(
    folder: ComparisonFolder, tmp_path: Path
) -> None:
    note = now(folder)
    folder.settle(note)
    write_set(tmp_path / "train.jsonl", 5, start=100)
    with pytest.raises(UserError, match=r"SHA-256 of the training set .*train\.jsonl"):
        folder.settle(now(folder))
    runs = trained_runs(folder.recipe)
    work = Work(folder, note, -1, [], lambda line: None, None)
    with pytest.raises(UserError, match=r"SHA-256 of the training set .*train\.jsonl"):
        work.train(runs[1], runs)
    assert not folder.run(runs[1]).manifest()["stages"]


def test_what_samples_matters_only_while_there_is_something_to_sample(folder: ComparisonFolder) -> None:
    runs = trained_runs(folder.recipe)
    assert not folder.all_sampled(runs)
    sampled(folder)
    assert folder.all_sampled(runs[:1])
    assert not folder.all_sampled(runs)
    folder.settle(now(folder))
    without = {key: value for key, value in now(folder).items() if key != "sampling_engine"}
    folder.settle(without)
    assert (basis.read(folder.path) or {})["sampling_engine"] == "llama_cpp"
    with pytest.raises(UserError, match="engine of sampling: llama_cpp → hf"):
        folder.settle(without | {"sampling_engine": "hf"})


def test_every_arm_starts_from_the_weights_that_were_noted(folder: ComparisonFolder) -> None:
    note, runs = now(folder), trained_runs(folder.recipe)
    work = Work(folder, note, -1, [0.0], lambda line: None, None)  # a stop was asked for
    with pytest.raises(Stopped):
        work.train(runs[1], runs)
    assert folder.run(runs[1]).manifest()["model"] == note["models"]["model"]
    assert folder.models_there() == note["models"], "which a folder without a note takes"


def test_what_a_run_was_trained_on_is_held_to_the_note_after_its_training(folder: ComparisonFolder) -> None:
    """The file may change in the hours that an arm takes, or may have changed and come back."""
    runs = trained_runs(folder.recipe)
    run = sampled(folder, sha256="0" * 64)
    for stage in ("curate", "train", "merge"):
        run.finish(stage, {"weights_sha256": SHA}, 1.0)
    for file in (run.samples, run.train_rows):
        file.write_text("{}\n")
    for made in (run.adapter, run.merged):
        made.mkdir()
        write_json(made / DONE_FILE, {"sizes": {}})
    work = Work(folder, now(folder), -1, [], lambda line: None, None)
    with pytest.raises(UserError, match=r"SHA-256 of the training set .*train\.jsonl: 000000000000 → "):
        work.train(runs[0], runs)


def test_other_base_weights_are_refused(folder: ComparisonFolder) -> None:
    folder.settle(now(folder))
    other = now(folder) | {"models": {"model": {"name": "m", "revision": None, "weights_sha256": "6" * 64}}}
    with pytest.raises(UserError, match="weights of the model: 555555555555 → 666666666666"):
        folder.settle(other)


def test_name_threads_and_export_may_change_and_the_runs_go_along(folder: ComparisonFolder, tmp_path: Path) -> None:
    run = sampled(folder)
    free = ("threads=2", "name=other", "export.types=[f16]")
    changed = ComparisonFolder.create(folder.path, recipe_in(tmp_path, *free))
    again = changed.run(trained_runs(changed.recipe)[0])
    assert (again.path, again.recipe.threads, again.recipe.name) == (run.path, 2, "other-ssd-0")
    assert RunFolder.open(run.path).recipe == again.recipe, "which its stages read"
    assert again.done("sample") == run.done("sample")
    bound = ComparisonFolder(folder.path, recipe_in(tmp_path, "sample.temperature=1.3"))
    with pytest.raises(UserError, match=r"sample\.temperature"):
        bound.run(trained_runs(bound.recipe)[0])


# -- an evaluation's own error ---------------------------------------------------------------------------------------


def test_an_evaluation_that_the_user_can_mend_says_so_in_its_own_words(folder: ComparisonFolder) -> None:
    folder.settle(now(folder) | {"engine": "hf"})
    with pytest.raises(UserError, match="engine of evaluation: hf → llama_cpp"):
        evaluate_arms(folder, [BASE_TEST])
    said: list[str] = []
    with run_lock(folder.path) as lock:
        work = Work(folder, basis.read(folder.path) or {}, lock, [], said.append, None)
        with pytest.raises(UserError, match="engine of evaluation: hf → llama_cpp"):
            work.evaluate([BASE_TEST])
    assert said == ["evaluate base: 1 arms"]
    assert not folder.failure.exists()
