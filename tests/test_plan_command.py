"""`ssd-lite plan`: recipes, own models, the Hub, and runs that have begun."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hub_server import Hub, running

from ssd_lite.cli import main
from ssd_lite.journal import encode_line
from ssd_lite.recipe_file import load_recipe, packaged_recipes
from ssd_lite.run_folder import RunFolder


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["plan", *words])


def value_of(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_object_has_what_a_program_reads(name: str) -> None:
    value = value_of(name, "--gpu", "a100-80", "--price", "2")
    assert value["fits"] is True
    assert set(value["stages"]) == {"sample", "train", "merge", "evaluate", "export"}
    train = value["stages"]["train"]
    assert train["gpu_peak_bytes"] == sum(train["terms"].values())
    assert set(train["terms"]) >= {"weights", "adapter", "optimiser", "activations", "workspace"}
    assert "kv_cache" in value["stages"]["sample"]["terms"]
    assert value["cost"] == pytest.approx([2 * hours for hours in value["hours"]], rel=0.02, abs=0.01)
    assert value["disk_peak_bytes"] > 0
    assert value["host_peak_bytes"] > 0
    assert "not measured" in value["basis"]


def test_a_plan_needs_no_network_and_no_heavy_library() -> None:
    code = """
import socket, sys
def refuse(*args, **options):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from click.testing import CliRunner
from ssd_lite.cli import main
result = CliRunner().invoke(main, ["plan", "qwen3-8b-qlora-24gb", "--gpu", "l4"])
assert result.exit_code == 0, result.output
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "numpy", "huggingface_hub"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("longest", "words"), [(60, "so most of what"), (150, "so many of what"), (1024, "")])
def test_rows_that_curate_would_drop_are_said(longest: int, words: str) -> None:
    """curate cuts nothing: a row above train.max_length was sampled, and paid for, for nothing."""
    said = run("quickstart", "--set", f"train.max_length={longest}").output
    assert words in said
    assert ("curate drops rows" in said) == bool(words)


def test_cards_on_which_it_fits_are_held_to_the_disk_too() -> None:
    assert "Cards on which it fits: none of those known." in run("quickstart", "--disk", "0.5").output


def test_what_does_not_fit_is_answered_with_keys_and_a_recipe_that_fits(tmp_path: Path) -> None:
    file = tmp_path / "fits.yaml"
    words = ("qwen3-4b-instruct-qlora-24gb", "--gpu", "rtx4090", "--set", "train.method=full")
    result = run(*words, "--write", str(file))
    assert result.exit_code == 0, result.output
    assert "It does not fit: train needs" in result.output
    assert "--set train.method=qlora" in result.output
    assert value_of(*words)["changes"] == {"train.method": "qlora"}
    assert load_recipe(str(file)).train.method == "qlora"
    assert value_of(str(file), "--gpu", "rtx4090")["fits"] is True
    again = run(*words, "--write", str(file))
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_a_tight_fit_and_long_sampling_are_told() -> None:
    tight = run("qwen3-4b-instruct-qlora-24gb", "--gpu", "a10").output
    assert "less than a tenth of the card to spare" in tight
    roomy = run("qwen3-4b-instruct-qlora-24gb", "--gpu", "h200").output
    assert "It fits.\n" in roomy
    assert "There is room for larger batches" in roomy
    assert "Most of the time goes into sampling" in roomy
    assert "Most of the time" not in run("quickstart", "--gpu", "l4").output


def test_money_only_where_a_price_was_named() -> None:
    assert "cost" not in run("quickstart", "--gpu", "l4").output
    assert value_of("quickstart", "--gpu", "l4")["cost"] is None
    assert "cost" in run("quickstart", "--gpu", "l4", "--price", "0.8").output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quickstart", "--gpu", "h10"), "did you mean 'h100'"),
        (("quickstart", "--set", "model.name=nowhere"), "no packaged model"),
        (("quickstart", "--set", "train.grpo={}"), "is not planned"),
        (("no-such-recipe",), "no recipe named"),
    ],
)
def test_mistakes_are_answered(words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.output


def test_a_folder_with_a_config_alone_is_enough(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "torch_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    value = value_of("quickstart", "--set", f"model.name={tmp_path}")
    assert "shape from the folder's config.json" in value["notes"]
    assert "base model" not in {entry["what"] for entry in value["disk"]}  # it lies there already


def test_headers_that_disagree_with_the_config_are_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tiny_models import save_tiny

    folder = save_tiny(tmp_path / "m")
    value = value_of("quickstart", "--set", f"model.name={folder}")
    assert not any("with care" in note for note in value["notes"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    value = value_of("quickstart", "--set", f"model.name={folder}")
    assert any("with care" in note for note in value["notes"])


@pytest.mark.slow
def test_a_gguf_is_planned_from_its_header() -> None:
    pytest.importorskip("gguf")
    from tiny_models import packaged_source

    source = packaged_source()
    packaged = value_of("quickstart")
    own = value_of("quickstart", "--set", f"model.name={source.gguf}")
    assert own["stages"]["train"]["terms"] == packaged["stages"]["train"]["terms"]


def test_lines_of_an_own_problem_file_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a"}\n\n' * 7)
    few = value_of("quickstart", "--set", f"problems.train={file}", "--mean-tokens", "10")
    assert few["stages"]["sample"]["tokens"] == [70, 70]


def test_problems_of_a_window_are_counted(tmp_path: Path) -> None:
    keys = ("question_content", "question_id", "public_test_cases", "private_test_cases")
    rows = [{**dict.fromkeys(keys, "x"), "contest_date": f"2025-0{month}-01"} for month in (1, 2, 5, 6)]
    file = tmp_path / "test6.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = f"problems.evaluate=livecodebench:{file}:2025-02-01..2025-05-31"
    words = ("--set", chosen, "--mean-tokens", "10", "--set", "evaluate.n=1", "--set", "evaluate.k=[1]")
    answered = value_of("quickstart", *words)["stages"]["evaluate"]["tokens"]
    assert answered == [2 * 2 * 10] * 2, "two problems, two arms, ten tokens"
    refused = run("quickstart", "--set", f"{chosen}:v6")
    assert refused.exit_code == 2
    assert "'v6' stands after the window" in refused.output


def steps(run_folder: RunFolder, count: int) -> None:
    run_folder.metrics.write_bytes(
        b"".join(
            encode_line({"step": n, "seconds": 30.0 if n == 1 else 10.0, "input_tokens": 500})
            for n in range(1, count + 1)
        )
    )


def test_a_run_that_has_begun_is_planned_with_what_it_measured(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "r", load_recipe("quickstart"))
    before = value_of(str(folder.path))
    assert before["measured"] == {}
    folder.samples.write_text("{}\n")
    summary = {"samples": 100, "tokens": 9793, "problems": {"count": 100}}
    folder.finish("sample", summary, 72.0)
    folder.train_rows.write_text("{}\n" * 94)
    steps(folder, 4)
    value = value_of(str(folder.path))
    assert value["measured"]["sample"]["hours"] == pytest.approx(0.02)
    train = value["measured"]["train"]
    # 94 rows in steps of 8 are 12; the first step took 30 s, the others 10 s.
    assert (train["steps"], train["steps_in_all"], train["seconds_per_step"]) == (4, 12, 10.0)
    assert train["hours_left"] == pytest.approx(80 / 3600)
    assert train["hours"] == pytest.approx(140 / 3600)
    assert value["stages"]["sample"]["tokens"] == [9800, 9800]  # the mean it found, 98
    assert "at step 4 of 12" in run(str(folder.path)).output
    assert run(str(folder.path), "--set", "a.b=c").exit_code == 2


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("torch")
    from tiny_models import save_tiny

    folder = save_tiny(tmp_path / "m", "qwen3", vocab_size=4096, hidden_size=256)
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with running(Hub(files)) as server:
        yield server


def test_a_hub_model_is_planned_from_its_config_and_headers_without_its_weights(hub: Hub, tmp_path: Path) -> None:
    env = hub.environment(tmp_path / "hub", None)
    words = ["plan", "quickstart", "--set", "model.name=some/model", "--json"]
    code = f"from ssd_lite.cli import main; main({words!r})"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert "shape from the Hub" in value["notes"]
    assert "base model" in {entry["what"] for entry in value["disk"]}
    assert hub.sent < len(hub.files["model.safetensors"]) / 4


def test_a_hub_model_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    result = run("quickstart", "--set", "model.name=some/model")
    assert result.exit_code == 2
    assert "config.json cannot be had" in result.output


@pytest.mark.parametrize("name", ["nothere.jsonl", "nosuchset", "questions:none.jsonl", "empty.jsonl"])
def test_a_problem_set_that_is_not_there_is_no_guess(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    result = run("quickstart", "--set", f"problems.train={name}")
    assert result.exit_code == 2
    assert ("holds no problem" if name == "empty.jsonl" else "there is no problem set of this name") in result.output


def test_what_cannot_be_planned_is_said(tmp_path: Path) -> None:
    tight = ("qwen3-4b-instruct-qlora-24gb", "--gpu", "rtx4090", "--set", "train.method=full")
    result = run(*tight, "--write", str(tmp_path / "none" / "fits.yaml"))
    assert (result.exit_code, "cannot be written" in result.output) == (2, True)
    (tmp_path / "m").mkdir()
    sizes = {"hidden_size": 64, "num_attention_heads": 0, "num_hidden_layers": 1, "vocab_size": 9}
    (tmp_path / "m" / "config.json").write_text(json.dumps({**sizes, "intermediate_size": 9}))
    result = run("quickstart", "--set", f"model.name={tmp_path / 'm'}")
    assert (result.exit_code, "says too little for a plan" in result.output) == (2, True)
