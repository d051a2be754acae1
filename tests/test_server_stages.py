"""Engine server in a run: recipe, plan and doctor, sample and evaluate with llama.cpp's real server, and a kill."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from evaluated_run import make_run
from test_plan import planned
from test_server_sampler import LLAMA, STAND_IN, gone
from tiny_models import save_tiny
from trained_run import make_merged_run

from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_file import load_recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages import pipeline
from ssd_lite.stages.answers import read_samples
from ssd_lite.stages.checkup.recipe import with_needs
from ssd_lite.stages.curate import curate
from ssd_lite.stages.evaluate import evaluate
from ssd_lite.stages.pages.page import spread
from ssd_lite.stages.report_findings import read_findings
from ssd_lite.stages.sample import sample
from ssd_lite.stages.train import train

ON = ["sample.engine=server", "evaluate.engine=server"]
VLLM = "server.command=vllm serve {model} --port {port} --max-model-len {context}"


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    base = save_tiny(folder / "base")
    body = {"name": "tiny", "threads": 1, "model": {"name": str(base)}, "server": {"command": LLAMA}, **sections}
    return Recipe.model_validate(body)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))


# -- recipe, plan, doctor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("vllm serve {model}", "needs {port}"),
        ("vllm serve --port {port}", "either {model}"),
        ("llama-server {model} {gguf} {port}", "either {model}"),
        ("vllm serve {modle} --port {port}", "{modle} is no place"),
        ("vllm serve '{model} --port {port}", "cannot be read as words"),
    ],
)
def test_a_command_that_cannot_serve_is_refused(command: str, words: str) -> None:
    with pytest.raises(UserError, match=r"server\.command") as caught:
        load_recipe("quickstart", [f"server.command={json.dumps(command)}"])
    assert words in caught.value.message


def test_an_engine_without_its_command_is_refused() -> None:
    with pytest.raises(UserError, match=r"sample\.engine server needs server\.command"):
        load_recipe("quickstart", ["sample.engine=server"])
    with pytest.raises(UserError, match=r"train\.target soft needs the laws"):
        load_recipe("quickstart", [*ON, VLLM, "train.target=soft"])
    kept = load_recipe("quickstart", [*ON, VLLM, "train.target=soft", "sample.targets=keep"])
    assert kept.sample.keeps_targets
    assert not load_recipe("quickstart", [*ON, VLLM]).sample.keeps_targets


def test_words_are_filled_in_without_a_shell() -> None:
    command = "serve '{model}' --port {port} --kv '{{a: 1}}'"
    server = load_recipe("quickstart", [f"server.command={json.dumps(command)}"]).server
    assert server.words({"model": "/a b", "port": "7"}) == ["serve", "/a b", "--port", "7", "--kv", "{a: 1}"]


def test_its_command_is_a_setting_of_what_it_sampled(tmp_path: Path) -> None:
    def digests(*settings: str) -> list[str]:
        run = RunFolder(tmp_path, load_recipe("quickstart", list(settings)))
        return [run.settings_digest("sample"), run.settings_digest("evaluate")]

    other = f"{VLLM} --quantization fp8"
    assert digests(*ON, VLLM)[0] != digests(*ON, other)[0]
    assert digests(VLLM) == digests(other) == digests(), "no engine starts it"
    only = ["evaluate.engine=server"]
    assert digests(*only, VLLM)[0] == digests(*only, other)[0]
    assert digests(*only, VLLM)[1] != digests(*only, other)[1]


def test_a_missing_program_is_found_before_anything_is_written(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [*ON, VLLM.replace("vllm", "no-such-program")])
    with pytest.raises(UserError, match="there is no program 'no-such-program' here"):
        pipeline.prepare(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()
    found = {one.name: one for one in with_needs([], recipe, True)}
    assert found["server"].status == "fail"
    here = load_recipe("quickstart", [*ON, VLLM.replace("vllm", shutil.which("python3") or "python3")])
    assert {one.name: one.status for one in with_needs([], here, True)}["server"] == "ok"


def test_the_plan_of_a_server_on_a_card() -> None:
    """Pages of cache instead of a padded batch, kernels in graphs: many completions at once, and so fewer hours."""
    name, at_once = "qwen3-8b-qlora-24gb", "sample.batch_size=64"
    slow = planned(load_recipe(name)).stages["sample"]
    quick = planned(load_recipe(name, [*ON, VLLM, at_once])).stages["sample"]
    assert quick.seconds[1] < slow.seconds[1] / 3
    assert quick.gpu_peak_bytes < 24 * 2**30
    small = planned(load_recipe(name, [*ON, VLLM, at_once]), "l4").stages["sample"]
    assert small.seconds[1] > quick.seconds[1]
    gguf = "server.command=llama-server --model {gguf} --port {port}"
    light = planned(load_recipe(name, [*ON, gguf, at_once, "model.gguf_type=q4_k_m"])).stages["sample"]
    assert light.terms["weights"] < quick.terms["weights"] / 2
    assert light.terms["kv_cache"] > quick.terms["kv_cache"], "what the weights leave is cache"


# -- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_of_a_server_are_trained_on_as_any(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    more = {"engine": "server", "max_new_tokens": 12, "batch_size": 4, "n": 2}
    run = RunFolder.create(tmp_path / "run", recipe_of(tmp_path, problems={"train_limit": 5}, sample=more))
    summary = sample(run)
    found = read_samples(run.samples)
    assert (summary["engine"], summary["samples"], len(found)) == ("server", 10, 10)
    assert {(one.engine, one.entropy_nats, one.survivors, one.targets) for one in found} == {
        ("server", None, None, None)
    }
    assert len({one.seed for one in found}) == 10
    assert all(0 < len(one.completion_ids) <= 12 for one in found)
    assert (run.path / "server.log").stat().st_size > 0


@pytest.mark.slow
def test_a_token_that_only_the_server_takes_for_an_end_is_none(tmp_path: Path) -> None:
    """llama.cpp ends at <file_sep> and such, the model does not: it is asked for the rest, and the law is kept."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    more = {"engine": "server", "max_new_tokens": 60, "batch_size": 2, "n": 1, "targets": "keep"}
    run = RunFolder.create(tmp_path / "run", recipe_of(tmp_path, problems={"train_limit": 40}, sample=more))
    sample(run)
    from ssd_lite.engines.sampling.targets import Targets
    from ssd_lite.span_file import read_span

    gone_on = 0
    for one in read_samples(run.samples):
        assert len(one.completion_ids) == 60 or one.finish_reason == "stop"
        assert (one.finish_reason == "stop") == (one.completion_ids[-1] in (0, 2))
        assert one.targets is not None
        targets = Targets.from_bytes(read_span(run.targets, one.targets), len(one.completion_ids))
        assert targets.hold(one.completion_ids)
        gone_on += any(token in (3, 4, 5) for token in one.completion_ids[:-1])
    assert gone_on, "or this tests nothing"


@pytest.mark.slow
def test_soft_targets_from_a_server(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    more = {"engine": "server", "max_new_tokens": 8, "batch_size": 2, "targets": "keep"}
    run = RunFolder.create(tmp_path / "run", recipe_of(tmp_path, problems={"train_limit": 3}, sample=more))
    sample(run)
    from ssd_lite.engines.sampling.targets import Targets
    from ssd_lite.span_file import read_span

    for one in read_samples(run.samples):
        assert one.targets is not None
        assert one.entropy_nats is not None
        targets = Targets.from_bytes(read_span(run.targets, one.targets), len(one.completion_ids))
        assert targets.hold(one.completion_ids)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["soft", "sampled"])
@pytest.mark.parametrize("ties", ["keep", "exact", "whole"])
def test_samples_of_a_server_in_bfloat16_are_trained_on(ties: str, target: str, tmp_path: Path) -> None:
    """Ties at the law's edge fall as the server likes: its tokens are in their targets all the same."""
    sections = {
        "problems": {"train_limit": 24},
        "server": {"command": f"{STAND_IN} --ties {ties}"},
        "sample": {
            "engine": "server",
            "max_new_tokens": 48,
            "targets": "keep",
            "temperature": 1.6,
            "top_k": 20,
            "top_p": 0.8,
        },
        "curate": {"cut_off": "keep", "drop_stubs": False},
        "train": {"target": target, "max_steps": 2, "lora_r": 2},
    }
    run = RunFolder.create(tmp_path / "run", recipe_of(tmp_path, **sections))
    sample(run)
    curate(run)
    assert train(run)["steps"] == 2
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    assert {"support_compression", "alignment", "target_entropy"} <= set(last), "the laws were read"


@pytest.mark.slow
def test_both_arms_are_served_in_turn(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    run = make_merged_run(
        tmp_path,
        {"gguf_type": "f16"},
        problems={"evaluate_limit": 3},
        server={"command": LLAMA},
        evaluate={"engine": "server", "n": 2, "k": [1], "max_new_tokens": 12, "batch_size": 3, "sandbox": "none"},
    )
    done = evaluate(run)
    assert set(done["arms"]) == {"base", "tuned"}
    for arm in ("base", "tuned"):
        report = json.loads(run.arm(arm).report.read_text())
        assert (report["engine"], report["gguf_type"], report["samples"]) == ("server", "f16", 6)
        assert report["entropies"] == []
        assert (run.arm(arm).path / "server.log").is_file()
    base, tuned = (run.arm(arm).samples.read_text() for arm in ("base", "tuned"))
    assert base != tuned, "two models"


def test_a_page_without_entropies_says_nothing_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    assert "Mean entropy" in spread(read_findings(run))
    for arm in ("base", "tuned"):
        report = json.loads(run.arm(arm).report.read_text())
        run.arm(arm).report.write_text(json.dumps({**report, "entropies": []}))
    page = spread(read_findings(run))
    assert "Mean entropy" not in page
    assert "Length of the evaluated completions" in page


@pytest.mark.slow
def test_killed_in_the_midst_it_goes_on_and_leaves_no_server(tmp_path: Path) -> None:
    """The stage's process dies by SIGKILL: the server goes with it, and what was answered is not asked again."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    note = tmp_path / "pid"
    noting = f"""sh -c 'echo $$ >{note}; exec "$@"' sh {LLAMA}"""
    more = {"engine": "server", "max_new_tokens": 60, "batch_size": 1}
    recipe = recipe_of(tmp_path, problems={"train_limit": 40}, sample=more, server={"command": noting})
    run = RunFolder.create(tmp_path / "run", recipe)
    command = [sys.executable, "-m", "ssd_lite", "sample", str(run.path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and not (run.samples.is_file() and run.samples.read_bytes().count(b"\n") >= 3):
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert gone(int(note.read_text()))
    before = run.samples.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = before[: before.rfind(b"\n") + 1]
    assert run.samples.read_bytes().startswith(whole)
    assert len(read_samples(run.samples)) == 40
    assert gone(int(note.read_text()))


def test_a_stage_says_why_its_server_failed(tmp_path: Path) -> None:
    more = {"engine": "server", "max_new_tokens": 8, "batch_size": 1}
    command = f"{STAND_IN} --fault 'does not start'"
    recipe = recipe_of(tmp_path, problems={"train_limit": 2}, sample=more, server={"command": command})
    run = RunFolder.create(tmp_path / "run", recipe)
    with pytest.raises(UserError, match="no card was found"):
        sample(run)
    assert run.done("sample") is None
