"""Versions as PEP 440 orders them, our ranges, Unsloth's window, and the Hub's token, which is never shown."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from ssd_lite.engines.training.engine_choice import UNSLOTH
from ssd_lite.stages.checkup.child import Probed
from ssd_lite.stages.checkup.hub import hub_cache, offline, reach_finding, token_finding
from ssd_lite.stages.checkup.packages import (
    PACKAGES,
    bitsandbytes_finding,
    llama_finding,
    package_finding,
    package_findings,
    unsloth_finding,
)
from ssd_lite.stages.checkup.versions import Requirement, allows, installed, key, parse, requirements

VERSIONS = [
    "1.0", "1.0.0", "1.0.1", "1.0rc1", "1.0a2", "1.0.dev3", "1.0.post1", "1.0.post1.dev2", "1.0rc1.dev2", "2.13.0",
    "2.14.1", "0.0.27.post2", "5.17.0", "5.17.1", "5.2.0", "6.0.0rc1", "6", "1!0.5", "2026.10.7", "2026.10.07",
    "0.20.2.post1", "4.0.3", "4.1.0",
]  # fmt: skip


def test_versions_are_ordered_and_matched_as_packaging_does() -> None:
    """Against the reference: every pair of versions under every operator."""
    compared = 0
    for one, other in itertools.product(VERSIONS, VERSIONS):
        assert (key(one) < key(other)) == (Version(one) < Version(other)), (one, other)
        wanted = [f"{operator}{other}" for operator in ("==", "!=", "<", "<=", ">", ">=", "~=")]
        for specifier in [*wanted, f"=={other}.*", f"!={other}.*"]:
            try:
                exact = SpecifierSet(specifier).contains(one, prereleases=True)
            except InvalidSpecifier:
                continue
            compared += 1
            assert allows(specifier, one) == exact, (one, specifier)
    assert compared > 4000


def test_local_labels_do_not_count_and_nonsense_is_no_version() -> None:
    assert allows(">=2.6,<3", "2.13.0+cpu")
    assert not allows(">=2.14", "2.13.0+cu130")
    assert allows("", "1.0")
    with pytest.raises(ValueError, match="no version"):
        key("not-a-version")


def test_requirements_are_read_as_packages_write_them() -> None:
    assert parse('transformers<6,>=5.17; extra == "train"') == Requirement("transformers", "<6,>=5.17", "train")
    assert parse("datasets!=4.0.*,!=4.1.0,<5.0.0,>=3.4.1") == Requirement("datasets", "!=4.0.*,!=4.1.0,<5.0.0,>=3.4.1")
    assert parse('huggingface_hub (>=0.34) ; python_version > "3"') == Requirement("huggingface-hub", ">=0.34")
    assert parse("ssd-lite[gguf,train]; extra == 'quickstart'") == Requirement("ssd-lite", "", "quickstart")
    assert parse("@nonsense") is None
    assert requirements("no-such-package-of-ours") == []
    assert installed("no-such-package-of-ours") is None


def test_packages_are_those_of_our_extras() -> None:
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    lines = extras["optional-dependencies"]
    for name, (extra, _) in PACKAGES.items():
        assert name in [found.name for line in lines[extra] if (found := parse(line)) is not None], name


def test_a_package_against_its_range() -> None:
    asked = Requirement("transformers", "<6,>=5.17", "train")
    assert package_finding("transformers", asked, "5.24.0").status == "ok"
    old = package_finding("transformers", asked, "4.57.1")
    assert (old.status, old.advice) == ("fail", 'pip install "transformers<6,>=5.17"')
    gone = package_finding("peft", Requirement("peft", ">=0.18", "train"), None)
    assert (gone.status, gone.advice) == ("absent", 'pip install "ssd-lite[train]"')
    # Unsloth's environment has an older TRL: GRPO does not work there, all else does.
    assert package_finding("trl", Requirement("trl", "<2,>=1.16", "grpo"), "1.15.0").status == "warn"
    assert package_finding("trl", None, "1.15.0").status == "ok"


def test_packages_of_this_environment_are_in_range() -> None:
    # Beside Unsloth there is an older TRL than GRPO takes.
    trl = "ok" if installed("unsloth") is None else "warn"
    assert {one.name: one.status for one in package_findings()} == {**dict.fromkeys(PACKAGES, "ok"), "trl": trl}


def versions_of(**found: str) -> Callable[[str], str | None]:
    return lambda name: found.get(name.replace("-", "_"))


# What the wheels of 2026.10.7 say of other packages, as importlib.metadata gives it.
UNSLOTH_ASKS = [
    "unsloth_zoo>=2026.10.7", "torch<2.15.0,>=2.4.0",
    'xformers>=0.0.27.post2; ("linux" in sys_platform or sys_platform == "win32") and platform_machine == "x86_64"',
    "bitsandbytes!=0.46.0,!=0.48.0,>=0.45.5", 'triton>=3.0.0; "linux" in sys_platform',
    "datasets!=4.0.*,!=4.1.0,!=4.4.*,!=4.5.0,<5.0.0,>=3.4.1", "peft!=0.11.0,>=0.18.0",
    "transformers!=4.53.0,!=5.0.0,!=5.1.0,<=5.17.0,>=4.52.4", "trl!=0.19.0,<=1.15.0,>=0.18.2",
    'trl<=0.1; extra == "old"',
]  # fmt: skip


def asks(package: str) -> list[Requirement]:
    assert package == "unsloth"
    return [found for line in UNSLOTH_ASKS if (found := parse(line)) is not None]


def test_window_of_unsloth() -> None:
    pins = {"unsloth": UNSLOTH, "unsloth_zoo": UNSLOTH}
    good = {"torch": "2.14.1", "transformers": "5.17.0", "trl": "1.15.0", "datasets": "4.8.5", "peft": "0.21.2"}
    assert unsloth_finding(versions_of(**pins, **good), asks).status == "ok"
    new = unsloth_finding(versions_of(**pins, **{**good, "transformers": "5.24.0", "trl": "1.16.0"}), asks)
    assert new.status == "warn"
    assert "transformers 5.24.0 is outside" in new.found
    assert "trl 1.16.0 is outside" in new.found
    assert new.advice.startswith('pip install "transformers')
    assert new.advice.count('"') == 4


def test_pins_of_unsloth() -> None:
    assert unsloth_finding(versions_of(), asks, has_card=False).status == "absent"
    silent = unsloth_finding(versions_of(unsloth="2025.9.5", unsloth_zoo="2025.9.12"), asks)
    assert (silent.status, "2025.9.5" in silent.found) == ("warn", True)
    half = unsloth_finding(versions_of(unsloth=UNSLOTH), asks)
    assert (half.status, "unsloth_zoo is missing" in half.found) == ("warn", True)


def test_bitsandbytes() -> None:
    ours = [Requirement("bitsandbytes", ">=0.48.1", "qlora")]
    right = Probed({"device": "cuda", "error": ""})
    assert bitsandbytes_finding(None, None, ours).status == "absent"
    assert "on the card" in bitsandbytes_finding(right, "0.50.2", ours).found
    assert bitsandbytes_finding(right, "0.45.0", ours).status == "fail"
    assert bitsandbytes_finding(Probed(None, "ended by SIGSEGV"), "0.50.2", ours).status == "fail"
    wrong = bitsandbytes_finding(Probed({"device": "cuda", "error": "NF4 weights are off by 1"}), "0.50.2", ours)
    assert (wrong.status, "off by 1" in wrong.found) == ("fail", True)


def test_llama_cpp() -> None:
    plain, cuda = Probed({"on_card": False, "error": ""}), Probed({"on_card": True, "error": ""})
    assert llama_finding(None, None, False).status == "absent"
    assert llama_finding(plain, "0.3.36", False).status == "ok"
    slow = llama_finding(plain, "0.3.36", True)
    assert (slow.status, slow.advice.split()[0]) == ("warn", "CMAKE_ARGS=-DGGML_CUDA=on")
    assert llama_finding(cuda, "0.3.36", True).status == "ok"
    assert llama_finding(Probed(None, "ended by SIGILL"), "0.3.36", False).status == "fail"
    assert llama_finding(Probed({"on_card": False, "error": "off"}), "0.3.36", False).status == "fail"
    assert llama_finding(Probed(None, "needs gguf", missing=True), "0.3.36", False).advice.endswith('[gguf]"')


SECRET = "hf_abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"])
def test_token_is_found_and_never_shown(place: str, tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path / "empty"), place: SECRET}
    if place.isupper() and place not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        folder = tmp_path / "huggingface" if place == "XDG_CACHE_HOME" else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(f"{SECRET}\n")
        environment = {place: str(tmp_path / "token" if place == "HF_TOKEN_PATH" else tmp_path)}
    finding = token_finding(environment)
    assert finding.status == "ok", finding
    assert SECRET not in str(finding.facts)


def test_no_token_and_a_spoiled_one(tmp_path: Path) -> None:
    assert token_finding({"HF_HOME": str(tmp_path)}).status == "absent"
    assert token_finding({"HF_HOME": str(tmp_path), "HF_TOKEN": " "}).status == "absent"
    spoiled = token_finding({"HF_TOKEN": f"{SECRET} {SECRET}"})
    assert spoiled.status == "warn"
    assert SECRET not in str(spoiled.facts)


def test_offline_and_out_of_reach() -> None:
    assert offline({"HF_HUB_OFFLINE": "1"})
    assert offline({"TRANSFORMERS_OFFLINE": "true"})
    assert not offline({"HF_HUB_OFFLINE": "0"})
    assert reach_finding(None, {"HF_HUB_OFFLINE": "1"}).status == "ok"
    assert reach_finding(Probed({"reached": True, "error": ""}), {}).status == "ok"
    assert reach_finding(Probed({"reached": False, "error": "timed out"}), {}).status == "warn"
    assert reach_finding(Probed(None, "did not answer within 10 s"), {}).status == "warn"


def test_where_hub_models_are_kept() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/x/y"}) == Path("/x/y")
    assert hub_cache({"HF_HOME": "/x"}) == Path("/x/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_hub_cache_is_where_huggingface_hub_has_it(name: str, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE); print(c.HF_TOKEN_PATH)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, name: str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == str(hub_cache({**clean, name: str(tmp_path)}))
