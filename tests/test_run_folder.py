"""A run folder belongs to one recipe and remembers what is done; every refusal names what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import load_recipe
from ssd_lite.recipe_stages import STAGE_SECTIONS, settings_digest
from ssd_lite.run_folder import RunFolder
from ssd_lite.run_lock import run_lock

# `server` counts where an engine is one (tests/test_server_stages.py).
BESIDE = ("name", "description", "threads", "rounds", "compare", "server")
SECTIONS = [name for name in Recipe.model_fields if name not in BESIDE]


def recipe(*settings: str) -> Recipe:
    return load_recipe("quickstart", settings)


def edit(run: RunFolder, old: str, new: str) -> None:
    file = run.path / "recipe.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_new_run_holds_its_whole_recipe_and_a_manifest(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "a", recipe("train.learning_rate=3e-5"))
    assert RunFolder.open(run.path).recipe == run.recipe
    assert run.recipe.train.learning_rate == 3e-5
    manifest = json.loads(run.manifest_file.read_text())
    assert (manifest["format"], manifest["stages"]) == (1, {})


def test_the_same_recipe_opens_the_same_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.finish("sample", {"samples": 3}, 1.0)
    assert RunFolder.create(tmp_path / "a", recipe()).done("sample") == {"samples": 3}


def test_another_description_is_no_other_recipe(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a", recipe())
    RunFolder.create(tmp_path / "a", recipe("description=other words"))


def test_another_recipe_is_refused_naming_each_key_the_stage_stands_on(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe("sample.seed=1"))
    run.samples.write_text("{}\n")
    with pytest.raises(UserError) as caught:
        RunFolder.create(tmp_path / "a", recipe("sample.seed=2", "sample.n=3", "evaluate.tuned.temperature=0.9"))
    assert "stage 'sample'" in caught.value.what
    assert "sample.seed: 1 → 2" in caught.value.what
    assert "sample.n: 1 → 3" in caught.value.what
    assert "evaluate" not in caught.value.what
    assert "--out" in caught.value.next_step


@pytest.mark.parametrize(("settings", "binds"), [((), False), (("train.grpo.num_generations=4",), True)])
def test_which_block_is_graded_binds_a_training_by_reward_alone(
    tmp_path: Path, settings: tuple[str, ...], binds: bool
) -> None:
    one, other = (
        RunFolder.create(tmp_path / block, recipe(*settings, f"evaluate.block={block}")) for block in ("last", "first")
    )
    assert (one.settings_digest("train") != other.settings_digest("train")) is binds


def test_a_first_try_that_made_nothing_may_be_mended(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a", recipe("problems.train=missing.jsonl"))
    mended = RunFolder.create(tmp_path / "a", recipe("problems.train=starter"))
    assert mended.recipe.problems.train == "starter"
    assert RunFolder.open(tmp_path / "a").recipe == mended.recipe


def test_a_stage_that_has_not_begun_may_get_another_recipe(tmp_path: Path) -> None:
    """Found wrong after hours of sampling: the next stage's settings change, the samples stay."""
    run = RunFolder.create(tmp_path / "a", recipe())
    run.finish("sample", {"samples": 3}, 1.0)
    mended = RunFolder.create(tmp_path / "a", recipe("train.learning_rate=3e-5", "export.types=[q8_0]", "threads=1"))
    assert RunFolder.open(tmp_path / "a").recipe == mended.recipe
    assert (mended.recipe.train.learning_rate, mended.done("sample")) == (3e-5, {"samples": 3})
    assert "train.learning_rate" in mended.log_file.read_text()
    mended.metrics.write_text("{}\n")
    with pytest.raises(UserError, match=r"stage 'train' was started with another recipe: train.lora_r"):
        RunFolder.create(tmp_path / "a", recipe("train.learning_rate=3e-5", "train.lora_r=3"))
    RunFolder.create(tmp_path / "a", recipe("train.learning_rate=3e-5", "evaluate.n=7"))


@pytest.mark.parametrize("arm", ["evaluations/base", "evaluations/guard/questions/tuned"])
def test_an_evaluation_that_has_begun_binds_its_settings(tmp_path: Path, arm: str) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    (run.path / arm).mkdir(parents=True)
    (run.path / arm / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="stage 'evaluate' was started"):
        RunFolder.create(tmp_path / "a", recipe("evaluate.n=7"))
    RunFolder.create(tmp_path / "a", recipe("export.types=[q8_0]"))


def test_a_run_at_work_keeps_its_recipe(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    with run_lock(run.path), pytest.raises(UserError, match="is in use"):
        RunFolder.create(tmp_path / "a", recipe("evaluate.n=7"))
    assert RunFolder.open(run.path).recipe == recipe()


def test_what_a_kill_left_at_the_very_start_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".recipe.yaml.part-1").write_text("name: a")
    assert RunFolder.create(tmp_path / "a", recipe()).recipe == recipe()


def test_a_stage_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe("train.lora_r=4"))
    run.start("train", run.metrics)
    other = RunFolder(run.path, recipe("train.lora_r=8"))
    other.start("train", run.metrics)  # nothing was made yet
    run.metrics.write_text("{}\n")
    other.start("train", run.metrics)
    with pytest.raises(UserError, match="begun with other settings"):
        run.start("train", run.metrics)


def test_a_folder_with_other_things_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("keep")
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.create(tmp_path, recipe())
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.create(tmp_path / "thesis.txt", recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        RunFolder.create(tmp_path / "file" / "run", recipe())
    assert str(tmp_path / "file" / "run") in caught.value.where


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        RunFolder.open(tmp_path)


def test_a_run_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.note("format", 2)
    with pytest.raises(UserError, match="format 2, this program reads 1"):
        RunFolder.open(run.path)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.manifest_file.write_text('{"stages": ')
    with pytest.raises(UserError) as caught:
        run.manifest()
    assert caught.value.where == str(run.manifest_file)


def test_a_stage_is_done_with_what_it_counted(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    assert run.done("sample") is None
    run.finish("sample", {"samples": 3}, 1.234)
    assert RunFolder.open(run.path).require("sample") == {"samples": 3}
    assert run.manifest()["stages"]["sample"]["seconds"] == 1.23


def test_a_stage_that_is_needed_first_is_named_with_its_command(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    with pytest.raises(UserError) as caught:
        run.require("sample")
    assert f"ssd-lite sample {run.path}" in caught.value.next_step


def test_a_setting_edited_after_its_stage_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.finish("sample", {"samples": 3}, 1.0)
    edit(run, "temperature: 1.1", "temperature: 1.2")
    with pytest.raises(UserError) as caught:
        RunFolder.open(run.path).done("sample")
    assert "sample" in caught.value.what
    assert caught.value.next_step


def test_a_setting_of_a_later_stage_may_still_be_edited(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.finish("sample", {"samples": 3}, 1.0)
    edit(run, "learning_rate: 0.0001", "learning_rate: 0.0002")
    assert RunFolder.open(run.path).done("sample") == {"samples": 3}


@pytest.mark.parametrize("line", [("description:", "description: other #"), ("threads: null", "threads: 2")])
def test_what_no_result_depends_on_may_be_edited(tmp_path: Path, line: tuple[str, str]) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.finish("report", {}, 1.0)
    edit(run, *line)
    assert RunFolder.open(run.path).done("report") == {}


def test_each_stage_stands_on_its_section_and_all_before_it() -> None:
    assert list(STAGE_SECTIONS["report"]) == SECTIONS
    before: tuple[str, ...] = ()
    for stage, sections in STAGE_SECTIONS.items():
        assert sections[-1] == stage
        assert sections[: len(before)] == before
        before = sections


def test_notes_arms_and_the_log(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.note("model", {"name": "m"})
    run.log("first")
    run.log("second\u00e9")
    assert RunFolder.open(run.path).manifest()["model"] == {"name": "m"}
    lines = run.log_file.read_text(encoding="utf-8").splitlines()
    assert [line.split("] ")[1] for line in lines] == ["first", "second\u00e9"]
    arm = run.arm("base")
    assert arm.samples == run.path / "evaluations" / "base" / "samples.jsonl"
    assert arm.path.is_dir()


def test_a_full_disk_never_hides_behind_the_log(tmp_path: Path) -> None:
    """/dev/full is a disk without room: it opens and refuses every write."""
    run = RunFolder.create(tmp_path / "a", recipe())
    run.log("a path of other bytes: \udcff")
    assert "\\udcff" in run.log_file.read_text(encoding="utf-8")
    run.log_file.unlink()
    run.log_file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run.log_file.write_text("x")
    run.log("nobody reads this")


def test_a_moved_run_is_the_same_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", recipe())
    run.finish("sample", {"samples": 3}, 1.0)
    run.path.rename(tmp_path / "b")
    assert RunFolder.create(tmp_path / "b", recipe()).done("sample") == {"samples": 3}


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (["sample.batch_size=3"], True),
        (["evaluate.batch_size=3"], True),
        (["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=8"], True),
        (["train.save_steps=7", "train.gradient_checkpointing=false", "train.report_to=[trackio]"], True),
        (["train.per_device_train_batch_size=16"], False),
        (["train.gradient_accumulation_steps=16"], False),
        (["train.max_grad_norm=0.5"], False),
    ],
)
def test_how_a_stage_works_may_change_in_its_middle(tmp_path: Path, settings: list[str], same: bool) -> None:
    """The advice where a card's memory was not enough can be followed in the same run."""
    eight = ("train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2")
    run = RunFolder.create(tmp_path / "a", recipe(*eight))
    run.finish("sample", {"samples": 3}, 1.0)
    run.start("train", run.metrics)
    run.metrics.write_text("{}\n")
    (run.path / "evaluations" / "base").mkdir(parents=True)
    (run.path / "evaluations" / "base" / "samples.jsonl").write_text("{}\n")
    if not same:
        with pytest.raises(UserError, match="stage 'train' was started"):
            RunFolder.create(tmp_path / "a", recipe(*eight, *settings))
        return
    other = RunFolder.create(tmp_path / "a", recipe(*eight, *settings))
    other.start("train", run.metrics)
    assert other.done("sample") == {"samples": 3}


def test_the_completions_of_a_grpo_step_bind_as_they_are_cut(tmp_path: Path) -> None:
    grpo = "train.grpo.num_generations=4"
    cuts = (("train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2"),
            ("train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1"))  # fmt: skip
    one, other = (settings_digest(recipe(grpo, *cut), "train") for cut in cuts)
    assert one != other
