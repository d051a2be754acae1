"""What Unsloth is told before it is imported and while it loads, seen by a stand-in that needs no card."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model

from ssd_lite.engines.training import unsloth_model
from ssd_lite.recipe import Train

SWITCHES = ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_AUTO_INSTALL", "UNSLOTH_COMPILE_LOCATION")
STAND_IN = """
import json, os
from pathlib import Path
Path(__file__).with_name("seen.json").write_text(json.dumps(dict(os.environ)))
print("a banner")
"""


@pytest.mark.parametrize("before", [None, "set by somebody"])
def test_switches_are_set_when_unsloth_is_imported(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unsloth.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("transformers", "peft", "trl", "unsloth")]:
        monkeypatch.delitem(sys.modules, name)
    for switch in SWITCHES:
        monkeypatch.setenv(switch, before or "")
        if before is None:
            del os.environ[switch]
    try:
        unsloth_model.prepare(tmp_path / "compiled")
    finally:
        sys.modules.pop("unsloth", None)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen.get("UNSLOTH_DISABLE_STATISTICS") == "1", "else it counts its users at a server"
    assert seen.get("UNSLOTH_AUTO_INSTALL") == "0", "else it installs packages by itself"
    assert seen.get("UNSLOTH_COMPILE_LOCATION") == str(tmp_path / "compiled"), "else it writes where one stands"
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "a banner\n")


@pytest.mark.parametrize(("method", "quantised"), [("lora", False), ("qlora", True)])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_what_is_asked_for_in_full(method: Any, quantised: bool, checkpointing: bool) -> None:
    settings = Train(method=method, max_length=77, seed=2**32 + 3, lora_r=4, gradient_checkpointing=checkpointing)
    assert unsloth_model.loading(Path("folder"), settings, torch.float16) == {
        "model_name": "folder",
        "max_seq_length": 77,
        "dtype": torch.float16,
        "load_in_4bit": quantised,
        "load_in_16bit": not quantised,
        "full_finetuning": False,
        "fix_tokenizer": False,
        "trust_remote_code": False,
        "use_gradient_checkpointing": "unsloth" if checkpointing else False,
        "use_exact_model_name": True,
        "fast_inference": False,  # it would start vLLM
        "random_state": 3,
        "max_lora_rank": 4,
    }


def test_build_model_asks_for_just_that_and_gives_a_model_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in loads with transformers and adapts with PEFT, in the number format that it was asked for."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    asked: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**wanted: Any) -> tuple[Any, None]:
            asked.append(wanted)
            return AutoModelForCausalLM.from_pretrained(wanted["model_name"], dtype=wanted["dtype"]), None

        @staticmethod
        def get_peft_model(base: Any, **wanted: Any) -> Any:
            asked.append(wanted)
            expected.append(unsloth_model.adapting(base, settings))
            names = ("r", "target_modules", "lora_alpha", "lora_dropout", "bias")
            config = LoraConfig(task_type="CAUSAL_LM", **{name: wanted[name] for name in names})
            return get_peft_model(base, config, autocast_adapter_dtype=False)

    stand_in: Any = types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    folder, settings = save_tiny_model(tmp_path / "m"), Train(lora_r=4, lora_alpha=9, lora_dropout=0.1)
    network: Any = unsloth_model.build_model(folder, settings)
    assert asked == [unsloth_model.loading(folder, settings, torch.bfloat16), *expected]
    assert {"q_proj", "down_proj"} < set(asked[1]["target_modules"])
    assert (asked[1]["lora_alpha"], asked[1]["lora_dropout"], asked[1]["use_rslora"]) == (9, 0.1, False)
    adapters = [tensor for tensor in network.parameters() if tensor.requires_grad]
    assert len(adapters) == 2 * 7 * 2
    assert {tensor.dtype for tensor in adapters} == {torch.float32}
    assert network.training
    assert network.config.use_cache is False
