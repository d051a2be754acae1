"""GRPO on tiny models: it learns a reward, sees our token ids, resumes to the same bits, stops, and refuses."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="trl is not installed")
import torch
from evaluated_run import make_run
from tiny_models import save_tiny
from tokenizers import Tokenizer, processors

from ssd_lite import interrupt
from ssd_lite.atomic import is_whole
from ssd_lite.engines import model_source
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.engines.training import grpo_trainer
from ssd_lite.engines.training.checkpoints import newest_whole
from ssd_lite.engines.training.grpo_trainer import train_grpo
from ssd_lite.engines.training.peft_model import BaseModel, trainable
from ssd_lite.engines.training.reward_trainer import RewardTrainer, plain_tokenizer
from ssd_lite.engines.training.trainer import TrainingFiles
from ssd_lite.engines.weights.merge import merge_folder
from ssd_lite.errors import MissingLibraryError, Stopped, UserError
from ssd_lite.journal import Journal, read_records
from ssd_lite.prompts import render
from ssd_lite.recipe import Grpo, Model, Problems, Recipe, Train
from ssd_lite.recipe_file import dump_recipe
from ssd_lite.recipe_measuring import Evaluate
from ssd_lite.recipe_stages import stages_of
from ssd_lite.records import Problem, Prompt
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import train_grpo as stage_file
from ssd_lite.stages.pipeline import check_machine
from ssd_lite.stages.report import report
from ssd_lite.stages.status import status
from ssd_lite.stages.train import train

GRPO_KEYS = ("num_generations", "temperature", "max_completion_length", "beta")


def small(**changes: Any) -> Train:
    """Two prompts a step, 8 completions each, in two micro-batches."""
    values = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "gradient_checkpointing": False,
        "lora_r": 4,
        "lora_alpha": 8,
    } | {key: value for key, value in changes.items() if key not in GRPO_KEYS}
    own = {"num_generations": 8, "max_completion_length": 4} | {k: changes[k] for k in GRPO_KEYS if k in changes}
    return Train(grpo=Grpo(**own), **values)  # type: ignore[arg-type]


def has_e(problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float("e" in text) for text in completions]


def prompts_of(folder: Path, count: int = 3) -> list[Prompt]:
    problems = [Problem(f"p{n}", ({"role": "user", "content": "Say e. " + n * "Again. "},)) for n in range(count)]
    return render(problems, ChatTokenizer.load(folder))


def go(folder: Path, settings: Train, reward: Callable[..., Sequence[float]] = has_e, count: int = 3) -> dict[str, Any]:
    """Train in `folder`, whose parent holds the model; log lines go to log.txt."""
    folder.mkdir(exist_ok=True)

    def say(line: str) -> None:
        with open(folder / "log.txt", "a") as file:
            file.write(line + "\n")

    files = TrainingFiles(folder / "checkpoints", folder / "metrics.jsonl", folder / "adapter", say)
    model = folder.parent / "model"
    return train_grpo(
        prompts_of(model, count), model, BaseModel("tiny", None, "hash"), files, settings, reward, threads=1
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("grpo") / "model")


@pytest.fixture
def place(model: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").symlink_to(model)
    return tmp_path


# -- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_what_is_rewarded_and_logs_every_step_once(place: Path) -> None:
    settings = small(
        method="full",
        per_device_train_batch_size=32,
        num_generations=16,
        max_steps=12,
        save_steps=100,
        learning_rate=3e-2,
    )
    summary = go(place / "run", settings)
    steps = read_records(place / "run" / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert {"loss", "grad_norm", "learning_rate", "tokens", "input_tokens", "seconds", "tokens_per_s"} <= set(steps[0])
    assert summary["first_reward"] == steps[0]["reward"] < 0.8
    assert summary["final_reward"] == steps[-1]["reward"] > 0.95
    assert steps[0]["reward_std"] > 0.1
    assert summary["completions"] == 12 * 64
    assert summary["tokens_trained"] == sum(step["tokens"] for step in steps) <= 4 * summary["completions"]
    assert summary["change_norm"] > 0
    assert {"steps", "tokens_read", "tokens_per_s", "first_loss", "final_loss", "versions", "device"} <= set(summary)
    assert summary["versions"]["trl"]
    assert steps[-1]["learning_rate"] == pytest.approx(0.2 * 3e-2)  # the schedule is that of section train
    assert {path.name for path in (place / "run").iterdir()} == {"checkpoints", "metrics.jsonl", "adapter"}
    assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["checkpoint-12"]


def test_prompts_reach_the_model_with_our_ids_and_completions_come_back_decoded_as_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer adds a start token to plain text; a rendered prompt has its own already."""
    folder = with_bos(place)
    seen: list[list[int]] = []
    texts: list[str] = []
    original = RewardTrainer._generate_single_turn

    def spy(self: Any, prompt_ids: Any, *args: Any) -> Any:
        seen.extend(list(ids) for ids in prompt_ids)
        return original(self, prompt_ids, *args)

    def reward(problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts.extend(completions)
        return has_e(problem_ids, completions)

    monkeypatch.setattr(RewardTrainer, "_generate_single_turn", spy)
    go(folder / "run", small(max_steps=2), reward)
    known = {prompt.ids for prompt in prompts_of(folder / "model")}
    assert {tuple(ids) for ids in seen} == known
    assert len(seen) == len(texts) == 2 * 16
    tokenizer = ChatTokenizer.load(folder / "model")
    assert not any(token in text for text in texts for token in ("<|im_end|>", "<|endoftext|>"))
    text = "  spaces , before n't \n"
    ids = tokenizer.encode(text)
    plain = plain_tokenizer(folder / "model", tokenizer)
    assert plain(text=[text])["input_ids"] == [ids]
    assert plain.batch_decode([ids], skip_special_tokens=True) == [text]


def with_bos(place: Path) -> Path:
    """A copy of the model whose tokenizer puts a start token before every text it is given."""
    folder = place / "bos"
    (folder / "model").mkdir(parents=True)
    for file in (place / "model").iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    file = folder / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    start = tokenizer.id_to_token(1)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, 1)])
    tokenizer.save(str(file))
    assert Tokenizer.from_file(str(file)).encode("a").ids[0] == 1
    return folder


def test_the_models_own_generation_settings_do_not_bend_the_law(place: Path) -> None:
    """What `generate` would fill in from a generation_config.json: greedy decoding, and only few tokens at all."""
    folder = place / "bent"
    (folder / "model").mkdir(parents=True)
    for file in (place / "model").iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    bent = {"do_sample": True, "top_k": 1, "min_p": 1.0, "temperature": 0.01, "suppress_tokens": list(range(3, 1000))}
    (folder / "model" / "generation_config.json").write_text(json.dumps(bent | {"eos_token_id": 2}))
    texts: list[str] = []

    def reward(problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts.extend(completions)
        return has_e(problem_ids, completions)

    go(folder / "run", small(max_steps=1), reward, count=1)
    assert len(set(texts)) > 8
    bent_texts = [texts.pop() for _ in range(16)]
    go(place / "run", small(max_steps=1), reward, count=1)
    assert sorted(bent_texts) == sorted(texts)  # the very draws of a model without such a file


@pytest.mark.parametrize(
    ("method", "changes"),
    [("lora", {"gradient_checkpointing": True, "beta": 0.1}), ("full", {"beta": 0.1}), ("qlora", {"beta": 0.1})],
)
def test_every_method_trains_with_a_kl_term(
    place: Path, method: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    formats: set[torch.dtype] = set()
    original = RewardTrainer.go

    def spy(self: Any, resume: Any) -> None:
        original(self, resume)
        formats.update(tensor.dtype for tensor in trainable(self.model).values())

    monkeypatch.setattr(RewardTrainer, "go", spy)
    summary = go(place / "run", small(method=method, max_steps=3, **changes))
    assert formats == {torch.float32}
    kl = [step["kl"] for step in read_records(place / "run" / "metrics.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 0
    if method != "qlora":
        merged = place / "merged"
        merged.mkdir()
        change = merge_folder(place / "model", place / "run" / "adapter", merged, dtype="float32", base_sha256="hash")
        assert change.norm == pytest.approx(summary["change_norm"], rel=1e-3)


@pytest.mark.slow
def test_resumed_ends_with_the_same_bits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the checkpoint of step 2 and in step 4: the completions drawn again are the same, and so is all."""
    whole = go(place / "whole", small(max_steps=5))
    calls = 0

    def dies(problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("killed")
        return has_e(problem_ids, completions)

    with pytest.raises(RuntimeError, match="killed"):
        go(place / "run", small(max_steps=5), dies)
    assert len(read_records(place / "run" / "metrics.jsonl")) == 3
    again = go(place / "run", small(max_steps=5))
    log = (place / "run" / "log.txt").read_text()
    assert "going on from step 2 of 5" in log
    assert "replayed" not in log
    logs = [read_records(place / name / "metrics.jsonl") for name in ("run", "whole")]
    for mine, theirs in zip(*logs, strict=True):
        changing = {"seconds", "tokens_per_s", "crc"}
        assert {k: v for k, v in mine.items() if k not in changing} == {
            k: v for k, v in theirs.items() if k not in changing
        }
    name = "adapter/adapter_model.safetensors"
    assert (place / "run" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert again["change_norm"] == whole["change_norm"]


def test_a_stop_saves_and_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
        monkeypatch.setattr(interrupt, "_requested", True)
        return has_e(problem_ids, completions)

    with pytest.raises(Stopped, match="step 1 of 4") as stopped:
        go(place / "run", small(save_steps=100), stops)
    assert stopped.value.exit_code == 75
    newest = newest_whole(place / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-1"
    assert len(read_records(place / "run" / "metrics.jsonl")) == 1
    assert not (place / "run" / "adapter").exists()
    monkeypatch.setattr(interrupt, "_requested", False)
    assert go(place / "run", small(save_steps=100))["steps"] == 4
    assert is_whole(place / "run" / "adapter")


@pytest.mark.slow
def test_it_tells_nobody_and_writes_in_the_run_folder_alone(place: Path, model: Path) -> None:
    """In a process with an empty home, no CI mark and no offline mark: not a connection, not a file elsewhere."""
    home = place / "home"
    home.mkdir()
    here = Path(__file__).parent
    code = """
import socket, sys
from pathlib import Path
def refuse(*args, **kwargs):
    print("CONNECTS", args)
    raise OSError("no connection in this test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from test_grpo import go, small
go(Path(sys.argv[1]), small(max_steps=1))
import time
time.sleep(1)  # a message would be sent by a thread
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "HF_HUB_OFFLINE", "HF_HOME")}
    environment |= {"HOME": str(home), "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(place / "run")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONNECTS" not in done.stdout
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_rewards_that_never_differ_are_said(place: Path) -> None:
    with pytest.raises(UserError, match=r"none of 2 steps .*mean reward 0\.000"):
        go(place / "run", small(max_steps=2), lambda ids, texts: [0.0] * len(texts))
    assert not (place / "run" / "adapter").exists()


def test_generations_that_do_not_fill_a_step(place: Path) -> None:
    with pytest.raises(UserError, match="5 completions a prompt do not divide the 16"):
        go(place / "run", small(num_generations=5))


def test_prompts_that_do_not_fit(place: Path) -> None:
    with pytest.raises(UserError, match="3 of 3 prompts do not fit: p2 has"):
        go(place / "run", small(max_length=20))
    with pytest.raises(UserError, match="leave 12"):  # the model's 512 positions
        go(place / "run", small(max_completion_length=500))


def test_a_reward_that_is_no_number_is_a_bug(place: Path) -> None:
    with pytest.raises(ValueError, match="no number"):
        go(place / "run", small(), lambda ids, texts: [float("nan")] * len(texts))


def test_passes_over_the_problems_make_the_steps() -> None:
    order, steps = grpo_trainer._order(5, Train(num_train_epochs=1.0, seed=3), 2)
    assert steps == 3
    assert sorted(order[:5]) == [0, 1, 2, 3, 4]
    assert len(order) == 6
    assert grpo_trainer._order(5, Train(max_steps=7), 2)[1] == 7


def test_running_out_of_card_memory_names_the_keys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(RewardTrainer, "train", full)
    with pytest.raises(UserError, match=r"max_completion_length.*gradient_accumulation_steps"):
        go(place / "run", small())


# -- the stage -------------------------------------------------------------------------------------------------------

# A program that is a number or a comment runs and prints nothing, which is what this test wants; a word is an error.
SILENT = {"kind": "stdin", "cases": [{"input": "", "output": ""}]}


def write_problems(path: Path, word: str, tests: Any = SILENT, count: int = 2) -> Path:
    rows = [{"id": f"{word}{n}", "prompt": f"{word} {n}", **({"tests": tests} if tests else {})} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run on the tiny model with two problems that only a program of no output passes."""
    source = model_source.ModelSource("tiny", "folder", place / "model", None, None, "0123", "tiny")
    monkeypatch.setattr(model_source, "resolve_model", lambda *args: source)
    return RunFolder.create(place / "run", recipe(place))


def recipe(place: Path, **problems: Any) -> Recipe:
    sets = {
        "train": str(write_problems(place / "train.jsonl", "Keep silent")),
        "evaluate": str(write_problems(place / "evaluate.jsonl", "Add")),
    } | problems
    settings = small(
        max_steps=3, per_device_train_batch_size=64, num_generations=64, max_completion_length=1, method="full"
    )
    return Recipe(
        name="r",
        threads=1,
        model=Model(name="tiny"),
        problems=Problems(**sets),
        train=settings,
        evaluate=Evaluate(block="whole"),
    )


@pytest.mark.slow
def test_the_stage_rewards_what_passes_its_tests(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real grader in its sandbox: numbers pass, words do not, and the model learns to write what passes."""
    rewards: dict[str, set[float]] = {}
    original = stage_file.PassReward.__call__

    def spy(self: Any, problem_ids: Sequence[str], completions: Sequence[str]) -> list[float]:
        found = original(self, problem_ids, completions)
        for text, reward in zip(completions, found, strict=True):
            rewards.setdefault(text, set()).add(reward)
        return found

    monkeypatch.setattr(stage_file.PassReward, "__call__", spy)
    summary = train(run)
    assert all(len(found) == 1 for found in rewards.values())
    numbers = [text for text in rewards if text in set("123456789")]
    assert numbers
    assert all(rewards[text] == {1.0} for text in numbers)
    assert all(rewards[text] == {0.0} for text in rewards if text.isalpha() and text not in dir(builtins))
    assert 0 < summary["first_reward"] < summary["best_reward"]
    assert (summary["steps"], summary["completions"], summary["engine"]) == (3, 3 * 128, "trl")
    assert summary["problems"]["count"] == 2
    assert summary["grader"]["tier"] != "none"
    assert run.require("train") == summary
    (run.path.parent / "train.jsonl").unlink()  # done is done: nothing is read again
    assert train(run) == summary
    assert not run.samples.exists()


def test_sample_and_curate_are_no_stages_of_such_a_run(run: RunFolder) -> None:
    assert stages_of(run.recipe) == ("train", "merge", "evaluate", "export", "report")
    assert stages_of(Recipe(name="r", model=Model(name="m")))[:2] == ("sample", "curate")
    seen = status(run)
    assert (seen["next"], list(seen["stages"])[:2]) == ("train", ["train", "merge"])


def test_problems_without_tests_are_counted(place: Path, run: RunFolder) -> None:
    write_problems(place / "train.jsonl", "Keep silent", tests=None)
    with pytest.raises(UserError, match="2 of 2 training problems have no tests, such as 'Keep silent0'"):
        train(run)
    assert not run.metrics.exists()


def test_a_prompt_of_the_evaluation_set_is_refused(place: Path, run: RunFolder) -> None:
    write_problems(place / "evaluate.jsonl", "Keep silent")
    with pytest.raises(UserError, match="2 of 2 training prompts are in the evaluation set"):
        train(run)


def test_a_missing_trl_is_named_before_anything_starts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_machine(recipe(place))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trl" else object())
    with pytest.raises(MissingLibraryError, match=r'trl.*pip install "ssd-lite\[grpo\]"'):
        check_machine(recipe(place))
    with pytest.raises(MissingLibraryError, match=r'train.grpo needs trl.*pip install "ssd-lite\[grpo\]"'):
        train(RunFolder.create(place / "other", recipe(place)))


def test_the_report_shows_the_reward(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    value = run.recipe.model_dump()
    value["train"]["grpo"] = {"num_generations": 8}
    (run.path / "recipe.yaml").write_text(dump_recipe(Recipe(**value)))
    summaries = {name: entry["summary"] for name, entry in run.manifest()["stages"].items()}
    run.note("stages", {})
    run = RunFolder.open(run.path)
    problem_set = {"name": "with-tests", "count": 7, "sha256": "cd" * 32, "note": ""}
    summaries["train"] |= {"problems": problem_set, "completions": 480}
    for name in ("train", "merge", "evaluate"):
        run.finish(name, summaries[name], 1.0)
    run.metrics.unlink()
    with Journal(run.metrics, lambda record: record["step"]) as journal:
        journal.append({"step": n, "loss": 0.0, "reward": n / 60, "seconds": 1.0} for n in range(1, 61))
    report(run)
    page = run.report.read_text()
    assert "Reward of the training" in page
    assert "480 completions" in page
    assert "with-tests" in page
    assert "Cross-entropy per trained token" not in page
    assert "ssd-lite curate" not in page
    card = (run.merged / "README.md").read_text()
    assert "GRPO" in card
    assert "fine-tuned on its own samples" not in card


@pytest.mark.slow
def test_a_whole_run(place: Path) -> None:
    """`ssd-lite run` from training to the report, every stage in its process."""
    chosen = recipe(place).model_dump()
    chosen["model"]["name"] = str((place / "model").resolve())
    chosen["evaluate"] |= {"engine": "hf", "n": 2, "k": [1], "max_new_tokens": 4}
    chosen["export"]["types"] = ["f16"]
    (place / "recipe.yaml").write_text(dump_recipe(Recipe(**chosen)))
    words = [sys.executable, "-m", "ssd_lite", "run", str(place / "recipe.yaml"), "--out", str(place / "whole")]
    done = subprocess.run(
        [*words, "--json"], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    value = json.loads(done.stdout)
    assert list(value["ran"]) == ["train", "merge", "evaluate", "export", "report"]
    assert value["stages"]["train"]["final_reward"] > value["stages"]["train"]["first_reward"]
    assert value["stages"]["merge"]["changed_tensors"] > 0
    assert "FutureWarning" not in done.stderr
    assert {path.name for path in (place / "whole" / "gguf").iterdir()} >= {"r-f16.gguf"}
