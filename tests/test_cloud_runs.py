"""Dry runs: the very command of every cloud file, on this CPU with the packaged model, to the end.

Only what belongs to a provider is a stand-in: ssh, rsync, shutdown, RunPod's API, Modal's decorators. The first run
does every stage; the others take it back from its archive with the report lost, so that each ends without doing all
again.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cloud_machine import CLOUD, ROOT, RSYNC, SSH, Machine, RunPod, ended, runpod_api, until
from tiny_models import packaged_source, shared_cache

from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.cloud_files import cloud_files
from ssd_lite.stages.status import status

pytestmark = pytest.mark.slow
pytest.importorskip("llama_cpp")
pytest.importorskip("peft")

NAME = "tiny"
RECIPE = """
threads: 1
model: {name: smollm2-135m-instruct}
problems: {train_limit: 2, evaluate_limit: 1}
sample: {temperature: 1.1, max_new_tokens: 12}
curate: {cut_off: keep, drop_stubs: false}
train:
  max_steps: 1
  gradient_accumulation_steps: 1
  gradient_checkpointing: false
  lora_r: 2
  lora_target_modules: [q_proj, v_proj]
evaluate: {n: 1, k: [1], max_new_tokens: 12}
merge: {check_prompts: 0}
export: {types: [q8_0], check: false}
report: {pairs: 1}
"""


def box(home: Path, **settings: str) -> Machine:
    """A machine that has the real `ssd-lite`, a bucket, a recipe and the limits; --then leaves a line behind."""
    packaged_source()
    (home / "keep").mkdir(parents=True, exist_ok=True)
    (home / f"{NAME}.yaml").write_text(RECIPE)
    made = Machine(home)
    made.environment = {
        **{name: os.environ[name] for name in ("LANG", "HF_HUB_OFFLINE", "OMP_NUM_THREADS") if name in os.environ},
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "SSD_LITE_CACHE": str(shared_cache()),
        "RECIPE": str(home / f"{NAME}.yaml"),
        "MAX_HOURS": "1",
        "MAX_COST": "1",
        "PRICE": "0.01",
        "THEN": f"echo fired >>{home}/then",
        "KEEP": str(home / "keep"),
        **settings,
    }
    return made


def assert_done(home: Path, folder: Path) -> None:
    """The run in `folder` is done, and --then came exactly once."""
    state = status(RunFolder.open(folder))
    assert (state["next"], state["in_use_by"]) == (None, None)
    assert (folder / "report.html").is_file()
    assert (home / "then").read_text() == "fired\n"


@dataclass(frozen=True)
class First:
    """A finished run's last archive, its report left out."""

    archive: Path

    def put(self, keep: Path) -> None:
        """Into another machine's bucket."""
        shutil.copy(self.archive, keep / f"{NAME}.20260101T000000-0001.tar")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    """SkyPilot's `run`, with the settings of its `envs`, from nothing to the report."""
    home = tmp_path_factory.mktemp("sky")
    task = yaml.safe_load(cloud_files()["skypilot.yaml"])
    machine = box(home)
    machine.environment = {**{k: v for k, v in task["envs"].items() if v is not None}, **machine.environment}
    code, out = machine.run("bash", "-c", task["run"], limit_s=600)
    assert code == 0, out
    assert_done(home, home / "ssd-lite-runs" / NAME)
    (archive,) = (home / "keep").glob("*.tar")
    lost = home / "lost.tar"
    with tarfile.open(archive) as whole, tarfile.open(lost, "w") as part:
        for member in whole:
            if member.name != "./report.html":
                part.addfile(member, whole.extractfile(member) if member.isfile() else io.BytesIO())
    return First(lost)


def test_skypilot(first: First) -> None:
    """The fixture ran it; here only that what it kept is a run."""
    with tarfile.open(first.archive) as archive:
        names = archive.getnames()
    assert names[0] == "./manifest.json"
    assert names[-1] == "./.last-entry"
    assert {"./samples.jsonl", "./merged/DONE.json", f"./gguf/{NAME}-q8_0.gguf"} <= set(names)


def test_hugging_face(first: First, tmp_path: Path) -> None:
    machine = box(tmp_path)
    first.put(tmp_path / "keep")
    code, out = machine.run(sys.executable, CLOUD / "hf_jobs.py", limit_s=120)
    assert code == 0, out
    assert "goes on from" in out
    assert_done(tmp_path, tmp_path / "ssd-lite-runs" / NAME)
    code, out = machine.run(sys.executable, CLOUD / "hf_jobs.py", KEEP=str(tmp_path / "no-bucket"))
    assert code == 1
    assert "the run would be lost" in out


def test_modal(first: First, tmp_path: Path) -> None:
    machine = box(tmp_path)
    first.put(tmp_path / "keep")
    names = ("RECIPE", "MAX_HOURS", "MAX_COST", "PRICE", "THEN")
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from cloud_machine import modal_app
app = modal_app()
settings = {{name: os.environ.pop(name) for name in {names!r}}}
sys.exit(app.work(settings, {str(tmp_path / "keep")!r}, lambda: None))
"""
    code_, out = machine.run(sys.executable, "-c", code, limit_s=120)
    assert code_ == 0, out
    assert_done(tmp_path, tmp_path / "ssd-lite-runs" / NAME)


def test_ssh(first: First, tmp_path: Path) -> None:
    there, results = tmp_path / "there", tmp_path / "results"
    remote = there / "ssd-lite-cloud" / NAME
    (remote / "run").mkdir(parents=True)
    machine = box(tmp_path, REMOTE=str(there), RESULTS=str(results), POLL_SECONDS="1", KEEP="", SETTINGS="")
    with tarfile.open(first.archive) as archive:
        archive.extractall(remote / "run", filter="data")
    for name, text in (("ssh", SSH), ("rsync", RSYNC)):
        machine.write(name, text)
    machine.write("shutdown", f'#!/bin/sh\necho "$@" >>{tmp_path}/shutdown\n')
    code, out = machine.run("bash", CLOUD / "ssh.sh", "user@host", "--then", "shutdown -h now", limit_s=120)
    assert code == 0, out
    until(lambda: (tmp_path / "shutdown").exists())
    assert (tmp_path / "shutdown").read_text() == "-h now\n"
    assert (results / "report.html").is_file()
    assert status(RunFolder.open(results))["next"] is None


def docker_words() -> list[str]:
    """What the Dockerfile's head gives to the container: the words behind the image's name."""
    head = "\n".join(line.removeprefix("#").strip() for line in cloud_files()["Dockerfile"].splitlines()[:8])
    line = re.search(r"docker run (.*)", re.sub(r"\\\n", " ", head))
    assert line
    words = shlex.split(line[1])
    return words[words.index("ssd-lite", words.index("HF_TOKEN")) :]


def test_docker(first: First, tmp_path: Path) -> None:
    machine = box(tmp_path)
    with tarfile.open(first.archive) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    words = docker_words()
    assert words[:2] == ["ssd-lite", "run"]
    words[2], words[words.index("--out") + 1] = machine.environment["RECIPE"], str(tmp_path / "run")
    code, out = machine.run(*words, "--then", machine.environment["THEN"], limit_s=120)
    assert code == 0, out
    assert_done(tmp_path, tmp_path / "run")


# -- RunPod ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[RunPod]:
    with runpod_api() as state:
        yield state


def pod(home: Path, api: RunPod, **settings: str) -> tuple[Machine, list[str]]:
    """A pod as `runpod.py up` asks for it: its machine, and the container's command."""
    machine = box(home, RUNPOD_API=api.url, RUNPOD_API_KEY="user-key", VOLUME="v", IMAGE="mine", **settings)
    api.keys = {"user-key"}
    code, out = machine.run(sys.executable, CLOUD / "runpod.py", "up", "--detach")
    assert code == 0, out
    (body,) = api.bodies
    api.keys = {"pod-key"}
    machine.environment |= {**body["env"], "KEEP": str(home / "keep")}  # type: ignore[dict-item]
    machine.environment |= {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "pod-key", "REMOVE_PAUSE": "0.1"}
    return machine, [*body["dockerEntrypoint"], *body["dockerStartCmd"]]  # type: ignore[misc]


def test_runpod_to_the_end(first: First, tmp_path: Path, api: RunPod) -> None:
    machine, words = pod(tmp_path, api)
    first.put(tmp_path / "keep")
    code, out = machine.run(*words, limit_s=120)
    assert code == 0, out
    assert_done(tmp_path, tmp_path / "ssd-lite-runs" / NAME)
    assert api.removed


def test_runpod_a_run_that_fails(tmp_path: Path, api: RunPod) -> None:
    machine, words = pod(tmp_path, api, SETTINGS="model.name=no-such-model")
    code, out = machine.run(*words, limit_s=120)
    assert code == 2, out
    assert "no model named" in out
    assert (tmp_path / "then").read_text() == "fired\n"
    assert api.removed


def test_runpod_sigterm_while_sampling(tmp_path: Path, api: RunPod) -> None:
    """The work is saved and lies in the archive, --then comes once, the pod goes."""
    settings = "problems.train_limit=150 sample.max_new_tokens=16 sample.batch_size=2"
    machine, words = pod(tmp_path, api, SETTINGS=settings)
    samples = tmp_path / "ssd-lite-runs" / NAME / "samples.jsonl"
    process = machine.start(*words)
    try:
        until(lambda: samples.exists() and samples.read_bytes().count(b"\n") >= 2, limit_s=120)
        process.send_signal(signal.SIGTERM)
        code, out = ended(process, 60)
    finally:
        process.kill()
    assert code == 75, out
    assert api.removed
    assert (tmp_path / "then").read_text() == "fired\n"
    (archive,) = (tmp_path / "keep").glob("*.tar")
    with tarfile.open(archive) as kept:
        member = kept.extractfile("./samples.jsonl")
        assert member is not None
        assert member.read() == samples.read_bytes()


def test_a_limit_ends_the_run_and_is_no_reason_to_start_it_again(tmp_path: Path) -> None:
    machine = box(tmp_path, MAX_HOURS="0.000001")
    code, out = machine.run("bash", CLOUD / "start.sh", limit_s=120)
    assert code == 0, out
    assert "a limit is reached" in out
    assert (tmp_path / "then").read_text() == "fired\n"
    assert status(RunFolder.open(tmp_path / "ssd-lite-runs" / NAME))["next"] == "sample"


def test_every_line_that_the_heads_quote_exists() -> None:
    """`ssd-lite ...` in the files and their heads: commands and options that are there."""
    from test_docs import mistakes

    quoted = [docker_words()]
    quoted += [shlex.split(line) for text in cloud_files().values() for line in re.findall(r"`(ssd-lite [^`]+)`", text)]
    assert [wrong for words in quoted for wrong in mistakes(shlex.join(words))] == []


def test_subprocess_of_start_sh_is_the_package_s_own() -> None:
    """What hf_jobs.py and modal_app.py fetch from the package is this checkout's start.sh."""
    command = [sys.executable, "-m", "ssd_lite", "recipes", "cloud", "start.sh"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (CLOUD / "start.sh").read_text()
