"""Training through Unsloth's GPU path gives the loss and gradients of the PEFT path: run on a CPU, kernels interpreted.

Runs where Unsloth is installed (`pip install "ssd-lite[unsloth]"` into an environment of its own; docs/unsloth.md has
the lines). What it proves and what not stands there too.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("Unsloth is not installed; .ci/run checks this in an environment of its own", allow_module_level=True)

from ssd_lite.engines.training import unsloth_proof
from ssd_lite.engines.training.unsloth_proof import FLOAT16_GRADIENT, FLOAT16_LOSS, Case, differences, run

pytestmark = pytest.mark.slow
SCRIPT = str(Path(__file__).parent / "unsloth_case.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models and the PEFT path's gradients of every case, made once."""
    place = tmp_path_factory.mktemp("proof")
    for family in unsloth_proof.FAMILIES:
        run([sys.executable, "-c", _SAVE, str(place / family), family])
    return place


_SAVE = (
    "import sys; from pathlib import Path; from ssd_lite.engines.training.proof_model import save_proof_model; "
    "save_proof_model(Path(sys.argv[1]), sys.argv[2])"
)


def reference(folder: Path, case: Case) -> Path:
    out = folder / f"{case.name}-reference.safetensors"
    if not out.exists():
        run([sys.executable, SCRIPT, "peft", "--exact", json.dumps(asdict(case)), str(folder / case.family), str(out)])
    return out


def compared(folder: Path, case: Case, control: str = "") -> tuple[float, float, str]:
    out = folder / f"{case.name}-{control or 'unsloth'}-{case.alpha}.safetensors"
    options = ["--control", control] if control else []
    model = str(folder / case.family)
    run([sys.executable, SCRIPT, *options, "unsloth", json.dumps(asdict(case)), model, str(out)])
    return differences(reference(folder, replace(case, alpha=32)), out)


@pytest.mark.parametrize("case", unsloth_proof.cases(), ids=lambda case: case.name)
def test_loss_and_every_gradient_agree(folder: Path, case: Case) -> None:
    loss, gradient, tensor = compared(folder, case)
    assert loss <= FLOAT16_LOSS
    assert gradient <= FLOAT16_GRADIENT, tensor


@pytest.mark.parametrize("control", ["alpha", "kernel", "padding"])
def test_what_is_spoiled_is_seen(folder: Path, control: str) -> None:
    """A wrong alpha, a kernel of the backward pass that is off by a fiftieth, rows padded on the left."""
    case = Case("llama", "lora", alpha=34 if control == "alpha" else 32)
    loss, gradient, _ = compared(folder, case, "" if control == "alpha" else control)
    assert gradient > FLOAT16_GRADIENT
    if control == "kernel":
        assert loss <= FLOAT16_LOSS, "a loss cannot show it: gradients must be compared"


def test_the_real_classes_take_what_is_given(tmp_path: Path) -> None:
    """Unsloth imported as on a card (without one it would answer with another class), its signatures bound."""
    code = (
        "import inspect, sys; sys.path.insert(0, sys.argv[1]); import unsloth_shim; unsloth_shim.before_import()\n"
        "import torch, pathlib\n"
        "from ssd_lite.engines.training import unsloth_model; from ssd_lite.recipe import Train\n"
        "unsloth_model.prepare(pathlib.Path(sys.argv[2]))\n"
        "from unsloth import FastLanguageModel as fast\n"
        "given = unsloth_model.loading(pathlib.Path('x'), Train(), torch.bfloat16)\n"
        "bound = inspect.signature(fast.from_pretrained).bind(**given)\n"
        "assert 'kwargs' not in bound.arguments, bound.arguments['kwargs']\n"
        "assert fast.__module__ == 'unsloth.models.loader', fast.__module__\n"
    )
    place = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, place, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
