"""What is trained can be merged: mixtures of experts, language models inside multimodal ones, else refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from safetensors.torch import load_file, save_file
from tiny_models import MIXTURES, SEEING, save_family, save_tiny

from ssd_lite.engines.training.adapted_modules import adapted_modules
from ssd_lite.engines.training.mergeable import adapted_weights, checkpoint_name, other_names
from ssd_lite.engines.training.peft_model import (
    BaseModel,
    build_model,
    check_trainable,
    load_base,
    save_trained,
    trainable,
)
from ssd_lite.engines.weights.adapter import BASE_FILE, CHECKPOINT_NAMES
from ssd_lite.engines.weights.merge import merge_folder
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe, Train
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.sample import sample

IDS = torch.arange(1, 13)[None]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def settings(**changes: Any) -> Train:
    return Train(**({"gradient_checkpointing": False, "lora_r": 4, "lora_alpha": 8} | changes))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = model.eval()(IDS).logits
    return values


def trained(folder: Path, out: Path, recipe: Train) -> Any:
    """A model whose trained tensors that a text reaches have moved, saved into `out` as training does."""
    network = build_model(folder, recipe)
    network(IDS).logits.square().sum().backward()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in trainable(network).items():
            if tensor.grad is not None and "lora_A" not in name:
                tensor += torch.randn_like(tensor) * 0.05
    out.mkdir()
    save_trained(network, out, BaseModel("x", None, "hash"))
    return network


def merged(base: Path, tuned: Path, out: Path, **options: Any) -> Any:
    out.mkdir()
    merge_folder(base, tuned, out, dtype="base", base_sha256="hash", **options)
    return load_base(out, "lora")


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_mixture_of_experts_trains_what_merges(family: str, method: str, tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", family)
    network = trained(base, tmp_path / "tuned", settings(method=method))
    assert (logits(network) - logits(load_base(base, "lora"))).abs().max() > 0.01
    assert torch.allclose(logits(merged(base, tmp_path / "tuned", tmp_path / "merged")), logits(network), atol=1e-4)
    if method == "lora":
        assert {name.rsplit(".", 2)[1] for name in adapted_weights(network)} >= set(ATTENTION)
        assert not any(".experts." in name for name in trainable(network))


def test_targets_that_peft_takes_for_experts_are_refused_before_any_step(tmp_path: Path) -> None:
    pytest.importorskip("peft.utils.transformers_weight_conversion")  # PEFT 0.18 rewrites nothing
    base = save_family(tmp_path / "base", "glm4_moe")
    for targets, words in ((["q_proj", "gate_proj", "up_proj"], "target_parameters"), (["gate_proj"], "for experts")):
        with pytest.raises(UserError, match=rf"(?s)lora_target_modules.*{words}.*Set all-linear"):
            build_model(base, settings(lora_target_modules=targets))
        with pytest.raises(UserError, match=words):
            check_trainable(base, settings(lora_target_modules=targets))
    with pytest.raises(UserError, match=r"no module 'gate_proj'.*k_proj, o_proj, q_proj, v_proj"):
        build_model(save_family(tmp_path / "no_shared", "qwen3_moe"), settings(lora_target_modules=["gate_proj"]))


def test_a_model_without_a_plain_linear_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plain linear module"):
        check_trainable(save_tiny(tmp_path / "base", "gpt2"), settings())


def test_short_names_where_they_are_enough(tmp_path: Path) -> None:
    plain = load_base(save_tiny(tmp_path / "plain"), "lora")
    assert adapted_modules(plain, "all-linear") == [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
    assert adapted_modules(plain, ["layers.1.mlp.up_proj"]) == ["layers.1.mlp.up_proj"]
    seeing = load_base(save_family(tmp_path / "seeing", "gemma3"), "lora")
    assert adapted_modules(seeing, ["o_proj"]) == ["o_proj"], "the tower calls its own out_proj"
    assert adapted_modules(seeing, ["q_proj"]) == [
        f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(4)
    ]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("family", SEEING)
def test_a_language_model_inside_a_multimodal_one(family: str, targets: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    base = save_family(tmp_path / "base", family)
    recipe = settings(lora_target_modules=targets)
    check_trainable(base, recipe)
    network = trained(base, tmp_path / "tuned", recipe)
    assert not any("vis" in name for name in trainable(network))
    noted = json.loads((tmp_path / "tuned" / BASE_FILE).read_text())[CHECKPOINT_NAMES]
    assert set(noted) == set(adapted_weights(network)), "the names differ in these families"
    before, wanted = logits(load_base(base, "lora")), logits(network)
    assert (wanted - before).abs().max() > 0.01
    assert torch.allclose(logits(merged(base, tmp_path / "tuned", tmp_path / "merged")), wanted, atol=1e-4)
    again = PeftModel.from_pretrained(load_base(base, "lora"), tmp_path / "tuned")
    assert torch.allclose(logits(again), wanted, atol=1e-5), "PEFT finds its own names in the adapter"
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == set(noted.values())


@pytest.mark.parametrize("family", SEEING)
def test_full_training_copies_what_nobody_trained(family: str, tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", family)
    check_trainable(base, settings(method="full"))
    network = trained(base, tmp_path / "tuned", settings(method="full"))
    assert torch.allclose(logits(merged(base, tmp_path / "tuned", tmp_path / "merged")), logits(network), atol=1e-4)
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    seeing = [name for name in old if "vis" in name]
    assert seeing
    assert all(torch.equal(old[name], new[name]) for name in seeing)
    (tmp_path / "tuned" / BASE_FILE).unlink()
    if set(load_file(tmp_path / "tuned" / "model.safetensors")) != set(old):
        with pytest.raises(UserError, match="another base"):
            merged(base, tmp_path / "tuned", tmp_path / "unknown")


def test_the_dequantised_base_has_the_names_of_the_files(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from ssd_lite.engines.training.nf4_base import Nf4Base

    base = save_family(tmp_path / "base", "qwen3_5")
    network = trained(base, tmp_path / "tuned", settings(method="qlora"))
    wanted = logits(network)
    onto = logits(merged(base, tmp_path / "tuned", tmp_path / "dequantised", quantised=Nf4Base(base)))
    original = logits(merged(base, tmp_path / "tuned", tmp_path / "original"))
    assert torch.allclose(onto, wanted, atol=1e-3)
    assert (original - wanted).abs().max() > 10 * (onto - wanted).abs().max()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_weight_that_the_files_lack_is_found_before_any_step(method: str, tmp_path: Path) -> None:
    """transformers makes up a weight that is missing; trained on, it could not be merged."""
    base = save_tiny(tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    lost = "model.layers.1.self_attn.q_proj.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    for check in (build_model, check_trainable):
        with pytest.raises(UserError, match=rf"cannot be merged.* 1 of \d+ weights .*{lost} \[64, 64\]"):
            check(base, settings(method=method))


def test_what_was_fused_while_loading_has_no_name(tmp_path: Path) -> None:
    base = load_base(save_family(tmp_path / "base", "qwen3_moe"), "lora")
    fused = base.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    assert checkpoint_name(base, "model.layers.0.mlp.experts.gate_up_proj", tuple(fused.shape)) is None
    kept = "model.layers.0.self_attn.q_proj.weight"
    assert checkpoint_name(base, kept, (64, 64)) == kept


def test_a_plain_model_notes_no_names(tmp_path: Path) -> None:
    network = trained(save_tiny(tmp_path / "base"), tmp_path / "tuned", settings())
    assert other_names(network) == {}
    assert json.loads((tmp_path / "tuned" / BASE_FILE).read_text()) == {
        "name": "x",
        "revision": None,
        "weights_sha256": "hash",
    }


def test_two_weights_under_one_name_are_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    trained(base, tmp_path / "tuned", settings())
    file, name = tmp_path / "tuned" / BASE_FILE, "model.layers.0.mlp.up_proj.weight"
    noted = {CHECKPOINT_NAMES: {"model.layers.1.mlp.up_proj.weight": name}}
    file.write_text(json.dumps(json.loads(file.read_text()) | noted))
    with pytest.raises(UserError, match="two weights one name"):
        merged(base, tmp_path / "tuned", tmp_path / "merged")


def test_the_sample_stage_asks_before_it_samples(tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text('{"id": "p", "prompt": "Add 1 and 1."}\n')
    value = {
        "name": "tiny",
        "threads": 1,
        "model": {"name": str(save_tiny(tmp_path / "base"))},
        "problems": {"train": str(tmp_path / "problems.jsonl")},
        "sample": {"engine": "hf", "n": 1, "max_new_tokens": 4},
        "train": {"lora_r": 65},
    }
    run = RunFolder.create(tmp_path / "run", Recipe.model_validate(value))
    with pytest.raises(UserError, match="rank 65 is above"):
        sample(run)
    assert not run.samples.exists()
    fitting = RunFolder.create(tmp_path / "other", Recipe.model_validate({**value, "train": {"lora_r": 4}}))
    assert sample(fitting)["samples"] == 1
