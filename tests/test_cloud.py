"""The files for rented machines: heads that say what is true, keys and flags that the providers' tools know.

What needs a provider's own package runs where it is installed: pip install skypilot==0.14.1 modal==1.6.4. Beside each
such check stands a lighter one against what was written down from that version. Nothing here needs an account.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cloud_machine import CLOUD, ROOT, WANTED, load

from ssd_lite.cli import main
from ssd_lite.recipe_file import packaged_recipes
from ssd_lite.recipe_yaml import parse_yaml
from ssd_lite.stages.cloud_files import cloud_files

FILES = cloud_files()
RENTED = ["Dockerfile", "hf_jobs.py", "modal_app.py", "runpod.py", "runpod_pod.sh", "skypilot.yaml", "ssh.sh"]
SKYPILOT = parse_yaml(FILES["skypilot.yaml"], "skypilot.yaml")
NOT_INSTALLED = "{} is tested in an environment of its own; the check beside this one runs here"


def head(name: str) -> str:
    """The comment or docstring at the top of a file, as one text."""
    text = FILES[name]
    if name.endswith(".py"):
        return ast.get_docstring(ast.parse(text)) or ""
    return "\n".join(line.lstrip("# ") for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))


def start_line(name: str) -> str:
    """The command behind `Start:`."""
    found = re.search(r"Start:\s+((?:.*\\\n)*.*)", head(name))
    assert found, f"{name} does not say how to start it"
    return re.sub(r"\\\n\s*", "", found[1])


def tool(name: str, extra: str = "test") -> str:
    """A command of an extra: beside this Python, or on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f'{name} is missing: pip install "ssd-lite[{extra}]"')
    return found


# -- all files -------------------------------------------------------------------------------------------------------


def test_the_promised_files_are_there() -> None:
    assert set(FILES) == {*RENTED, "start.sh", "constraints.txt"}


@pytest.mark.parametrize("name", [*RENTED, "start.sh"])
def test_a_head_says_how_to_start_it_what_forgetting_costs_and_what_was_checked(name: str) -> None:
    text = head(name)
    assert re.search(r"^Start:", text, re.M)
    assert re.search(r"^Forget:", text, re.M)
    assert re.search(r"^Checked:", text, re.M)
    if name in RENTED:
        assert re.search(r"Not (run on|run against|built)", text), "what nobody ran must be said"


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".sh")])
def test_shellcheck(name: str) -> None:
    done = subprocess.run([tool("shellcheck"), CLOUD / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".sh")])
def test_bash_can_read_it(name: str) -> None:
    done = subprocess.run(["bash", "-n", CLOUD / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["hf_jobs.py", "modal_app.py", "runpod.py"])
def test_python_reads_it_without_ssd_lite(name: str) -> None:
    """They start on a machine that has no ssd-lite: the standard library, and Modal's own package, are all."""
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(FILES[name]))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {module.split(".")[0] for module in imported} <= {*sys.stdlib_module_names, "modal"}


def test_no_token_is_written_anywhere() -> None:
    for name, text in FILES.items():
        assert not re.search(r"\b(hf_[A-Za-z0-9]{8,}|rpa_\w+|sk-\w+)", text), name


def test_every_setting_that_start_sh_reads_is_in_its_head() -> None:
    text = FILES["start.sh"]
    body = text.split("set -euo pipefail")[1]
    read = set(re.findall(r'"?\$\{([A-Z_]+):[=?-]', body)) | set(re.findall(r"\$\{([A-Z_]+):=", body))
    told = set(re.findall(r"\b[A-Z_]{4,}\b", text.split("set -euo pipefail")[0]))
    read |= {name for names in re.findall(r"for name in ([A-Z_ ]+);", body) for name in names.split()}
    assert read - told <= {"SSD_LITE_ENV", "PATH", "HOME"}
    assert read >= {*WANTED, "KEEP", "RUN_DIR", "SETTINGS", "THEN", "SSD_LITE_PACKAGE"}


@pytest.mark.parametrize("name", ["hf_jobs.py", "modal_app.py", "runpod.py", "skypilot.yaml", "ssh.sh", "start.sh"])
def test_the_start_line_sets_what_is_wanted(name: str) -> None:
    """MAX_HOURS, MAX_COST, PRICE and a recipe that ships: on the line itself, or in the file's own defaults."""
    said = set(re.findall(r"\b([A-Z_]+)=", start_line(name)))
    given = said | {key for key, value in SKYPILOT["envs"].items() if value is not None and name == "skypilot.yaml"}
    assert given >= set(WANTED)
    recipe = re.search(r"RECIPE=(\S+)", start_line(name))
    assert recipe is None or recipe[1] in packaged_recipes()


# -- SkyPilot --------------------------------------------------------------------------------------------------------

# Of sky.utils.schemas in SkyPilot 0.14.1: the keys used here, with their type.
SKYPILOT_KEYS: dict[str, Any] = {
    "name": str,
    "resources": {
        "accelerators": dict,
        "use_spot": bool,
        "disk_size": int,
        "max_hourly_cost": float,
        "autostop": {"idle_minutes": int, "down": bool},
        "job_recovery": {"strategy": str, "max_restarts_on_errors": int, "recover_on_exit_codes": list},
    },
    "envs": dict,
    "secrets": dict,
    "workdir": str,
    "file_mounts": {"/keep": {"name": str, "mode": str}},
    "setup": str,
    "run": str,
}


def strangers(value: dict[str, Any], known: dict[str, Any], where: str = "") -> list[str]:
    """Keys that the table does not have, or has with another type."""
    found = []
    for key, item in value.items():
        expected = known.get(key)
        if isinstance(expected, dict):
            found += strangers(item, expected, f"{where}{key}.") if isinstance(item, dict) else [f"{where}{key}"]
        elif expected is None or not isinstance(item, expected):
            found.append(f"{where}{key}")
    return found


def test_skypilot_keys_are_those_of_its_schema() -> None:
    assert strangers(SKYPILOT, SKYPILOT_KEYS) == []
    assert strangers({"resources": {"autostop": {"down": 1}, "spot": True}}, SKYPILOT_KEYS) == [
        "resources.autostop.down",
        "resources.spot",
    ]


def test_skypilot_comes_back_after_75_alone_and_ends_its_machine() -> None:
    resources = SKYPILOT["resources"]
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75]
    assert resources["job_recovery"]["max_restarts_on_errors"] == 0
    assert resources["autostop"]["down"] is True
    assert SKYPILOT["envs"]["KEEP"] in SKYPILOT["file_mounts"]
    assert all(value is None or isinstance(value, str) for value in SKYPILOT["envs"].values())


def test_skypilot_itself_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("sky") is None:
        pytest.skip(NOT_INSTALLED.format("SkyPilot"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    import sky
    from sky.jobs import recovery_strategy  # noqa: F401  # registers the strategies
    from sky.utils import common_utils, registry, schemas

    common_utils.validate_schema(yaml.safe_load(FILES["skypilot.yaml"]), schemas.get_task_schema(), "task: ")
    common_utils.validate_schema(dict(SKYPILOT["resources"]), schemas.get_resources_schema(), "resources: ")
    file = tmp_path / "task.yaml"
    file.write_text(
        FILES["skypilot.yaml"].replace("PRICE: null", 'PRICE: "0.4"').replace("BUCKET: null", "BUCKET: b-x1")
    )
    task = sky.Task.from_yaml(str(file))
    assert all(resource.use_spot for resource in task.resources)
    recovery = {json.dumps(resource.job_recovery, sort_keys=True) for resource in task.resources}
    assert len(recovery) == 1
    assert json.loads(recovery.pop())["recover_on_exit_codes"] == [75]
    strategy = SKYPILOT["resources"]["job_recovery"]["strategy"]
    assert strategy.lower() in registry.JOBS_RECOVERY_STRATEGY_REGISTRY
    assert list(task.storage_mounts) == ["/keep"]


# -- Hugging Face Jobs -----------------------------------------------------------------------------------------------


def pep_723(text: str) -> dict[str, Any]:
    """The TOML of a script's first PEP 723 block."""
    block = re.search(r"(?m)^# /// script$\n((?:^#(?:| .*)$\n)+)^# ///$", text)
    assert block
    return tomllib.loads("".join(line[2:] if line[:2] == "# " else line[1:] for line in block[1].splitlines(True)))


def test_hugging_face_header() -> None:
    header = pep_723(FILES["hf_jobs.py"])
    assert set(header) == {"requires-python", "dependencies", "tool"}
    # --with names the package: a dependency that PyPI does not have would fail before --with is looked at.
    assert header["dependencies"] == []
    table = header["tool"]["hf-jobs"]
    assert set(table) <= {"flavor", "timeout", "secrets"}
    assert f"--flavor {table['flavor']} --timeout {table['timeout']}" in start_line("hf_jobs.py")


def readme_line(start: str) -> str:
    """A command of README.md, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    return next(line for line in text.splitlines() if line.startswith(start))


def test_readmes_sky_line_passes_every_limit() -> None:
    """A variable that is exported but not passed leaves the file's own limit in force."""
    line = readme_line("sky jobs launch")
    assert set(re.findall(r"--env (\w+)", line)) >= set(WANTED)


@pytest.mark.parametrize("where", ["head", "README"])
def test_hugging_face_client_takes_the_line(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf jobs uv run --dry-run` of the installed client reads every flag and the script, and submits nothing.

    The client takes an unknown flag for the script's name, so it is the summary that tells.
    """
    for name, value in WANTED.items():
        monkeypatch.setenv(name, value)
    words = shlex.split(start_line("hf_jobs.py") if where == "head" else readme_line("hf jobs"))
    assert words[:4] == ["hf", "jobs", "uv", "run"]
    command = [tool("hf", extra="data"), *words[1:4], "--dry-run", *words[4:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    summary = dict(re.findall(r"^  (\w+) +(.*?)$", said, re.M))
    assert summary["script"] == "recipes/cloud/hf_jobs.py"
    assert "args" not in summary
    expected = {"with": "ssd-lite[unsloth,gguf,data] @ git+https://...", "flavor": "l4x1", "timeout": "10h"}
    assert {key: summary.get(key) for key in expected} == expected
    assert summary["volumes"] == "hf://buckets/ME/ssd-runs:/keep"
    assert all(f"{name}=" in said for name in WANTED)
    assert "not submitted" in said


# -- Modal -----------------------------------------------------------------------------------------------------------

# Keywords of modal 1.6.4.
MODAL_KEYWORDS = {
    "function": {"image", "gpu", "volumes", "secrets", "timeout", "retries", "single_use_containers"},
    "Retries": {"max_retries", "backoff_coefficient", "initial_delay", "max_delay"},
    "debian_slim": {"python_version"},
    "add_local_dir": {"copy", "ignore"},
    "add_local_file": {"copy"},
}


def test_modal_keywords_are_those_of_its_functions() -> None:
    seen = set()
    for node in ast.walk(ast.parse(FILES["modal_app.py"])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MODAL_KEYWORDS:
            seen.add(node.func.attr)
            assert {keyword.arg for keyword in node.keywords} <= MODAL_KEYWORDS[node.func.attr], node.func.attr
    assert seen == set(MODAL_KEYWORDS)


@pytest.mark.filterwarnings("error")
def test_modal_itself_takes_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("modal") is None:
        pytest.skip(NOT_INSTALLED.format("modal"))
    import modal

    monkeypatch.setenv("GPU", "L4,A10")
    monkeypatch.setenv("MAX_HOURS", "8")
    given: dict[str, Any] = {}
    register = modal.App.function
    monkeypatch.setattr(modal.App, "function", lambda app, **words: given.update(words) or register(app, **words))
    app = load("modal_app.py")
    assert isinstance(app.run, modal.Function)
    assert (app.run._spec_.gpus, list(app.run._spec_.volumes)) == (["L4", "A10"], ["/keep"])
    assert len(app.run._spec_.secrets) == 1
    assert (given["timeout"], given["retries"].max_retries) == (9 * 3600, 2)
    assert app.time_out("30") == 24 * 3600
    assert type(app.main).__name__ == "LocalEntrypoint"


# -- Docker ----------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), continued lines joined, comments left out."""
    lines = [line for line in FILES["Dockerfile"].splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_dockerfile_copies_what_is_there_and_drops_root() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {
        *("FROM", "SHELL", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "USER", "ENTRYPOINT", "CMD"),
    }
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from"):
            assert [word for word in rest.split()[:-1] if not (ROOT / word).exists()] == []
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    assert len(set(bases)) == 1, "both stages have the same Python, so that the environment can move"
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", bases[0])
    assert [rest for name, rest in found if name == "USER"] == ["10001"]
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["ssd-lite"]


def test_hadolint() -> None:
    command = [tool("hadolint"), "--no-color", CLOUD / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_constraints_are_exact_and_hold_the_pins_of_the_extra() -> None:
    lines = [line for line in FILES["constraints.txt"].splitlines() if not line.startswith("#")]
    pins = dict(re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups() for line in lines)  # type: ignore[union-attr]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["unsloth"]
    for requirement in extra:
        if "==" in requirement:
            name, version = requirement.split("==")
            assert pins[name] == version


# -- the command line ------------------------------------------------------------------------------------------------


def test_recipes_cloud_lists_prints_and_copies(tmp_path: Path) -> None:
    def said(*words: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["recipes", "cloud", *map(str, words)])
        return result.exit_code, result.output

    code, listed = said()
    assert code == 0
    assert [line.split()[0] for line in listed.splitlines()] == sorted(FILES)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in listed.splitlines())
    assert said("start.sh") == (0, FILES["start.sh"])
    code, out = said("start.bash")
    assert code == 2
    assert "did you mean 'start.sh'" in out
    assert said("ssh.sh", "--copy", tmp_path / "one")[0] == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["ssh.sh"]
    assert said("--copy", tmp_path / "all")[0] == 0
    assert {path.name: path.read_text() for path in (tmp_path / "all").iterdir()} == FILES
    (tmp_path / "all" / "ssh.sh").write_text("mine")
    code, out = said("--copy", tmp_path / "all")
    assert code == 2
    assert "differs" in out
    assert (tmp_path / "all" / "ssh.sh").read_text() == "mine"
