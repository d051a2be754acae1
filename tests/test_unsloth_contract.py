"""What goes to Unsloth exists there under these names: read from the installed wheel without importing it.

`SSD_LITE_UNSLOTH` may name a folder in which the wheel was unpacked (`pip install --target FOLDER --no-deps`).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd_lite.engines.training import unsloth_model
from ssd_lite.recipe import Train

SETTINGS = [Train(), Train(method="qlora", gradient_checkpointing=False), Train(lora_target_modules=["q_proj"])]


class Base(torch.nn.Module):
    """Modules with the names of a decoder layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj, self.lm_head = (torch.nn.Linear(2, 2) for _ in range(3))

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def get_decoder(self) -> Base:
        return self


def wheel() -> Path:
    """The folder that holds the package `unsloth`."""
    named = os.environ.get("SSD_LITE_UNSLOTH")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("unsloth")
    if spec is None or spec.origin is None:
        pytest.skip("Unsloth is not installed; .ci/run checks this in an environment of its own")
    return Path(spec.origin).parents[1]


def parameters(source: str, owner: str, function: str) -> tuple[list[str], bool]:
    """Names of a method's parameters, and whether it takes any others."""
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    methods = [node for one in classes for node in one.body if isinstance(node, ast.FunctionDef)]
    found = next(node for node in methods if node.name == function)
    names = [argument.arg for argument in (*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs)]
    return names, found.args.kwarg is not None


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_keyword_is_a_named_parameter(settings: Train) -> None:
    """Named, because both functions take **kwargs and would swallow a misspelt one."""
    models = wheel() / "unsloth" / "models"
    loader = (models / "loader.py").read_text(encoding="utf-8")
    llama = (models / "llama.py").read_text(encoding="utf-8")
    loading = unsloth_model.loading(Path("folder"), settings, torch.bfloat16)
    adapting = unsloth_model.adapting(Base(), settings)
    for source, owner, function, given in (
        (loader, "FastLanguageModel", "from_pretrained", loading),
        (llama, "FastLlamaModel", "get_peft_model", adapting),
    ):
        names, takes_more = parameters(source, owner, function)
        assert set(given) <= set(names)
        assert takes_more  # were it otherwise, Python itself would refuse a misspelt name
        assert "misspelt" not in names


def test_what_is_asked_for() -> None:
    loading = unsloth_model.loading(Path("folder"), Train(method="qlora", max_length=77), torch.bfloat16)
    assert loading["use_exact_model_name"] is True, "else 4-bit loading takes another repository"
    assert (loading["load_in_4bit"], loading["load_in_16bit"], loading["max_seq_length"]) == (True, False, 77)
    assert loading["use_gradient_checkpointing"] == "unsloth"
    adapting = unsloth_model.adapting(Base(), Train(lora_r=4, lora_alpha=9, gradient_checkpointing=False))
    assert (adapting["r"], adapting["lora_alpha"], adapting["use_gradient_checkpointing"]) == (4, 9, False)
    assert adapting["target_modules"] == ["q_proj", "o_proj"]


def test_unsloth_comes_before_transformers_or_not_at_all(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import transformers  # noqa: F401

    with pytest.raises(RuntimeError, match="must be imported before"):
        unsloth_model.prepare(tmp_path)


def test_the_stage_chooses_the_engine_before_transformers_is_there(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ssd_lite.stages import train; "
        "Path('rows.jsonl').write_text('{\"prompt_ids\": [1], \"completion_ids\": [2]}\\n'); "
        "train.read_rows(Path('rows.jsonl'), 9, Path('none')); "
        "from ssd_lite.engines.training.engine_choice import Machine; Machine.here(); "
        "import ssd_lite.engines.training.unsloth_model; "
        "sys.exit(str([name for name in ('transformers', 'peft', 'trl') if name in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.strip().endswith("[]"), done.stderr
