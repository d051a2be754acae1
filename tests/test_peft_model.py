"""The trained model: what trains, in which format, what is refused, and that 4-bit stays right on any CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import random_rows, save_tiny_model

from ssd_lite.engines.training.batching import collate
from ssd_lite.engines.training.loss_model import LossModel
from ssd_lite.engines.training.peft_model import BaseModel, build_model, save_trained, trainable
from ssd_lite.engines.training.weight_change import WeightChange
from ssd_lite.engines.weights.adapter import BASE_FILE
from ssd_lite.errors import UserError
from ssd_lite.recipe import Train


def settings(**changes: Any) -> Train:
    return Train(**({"gradient_checkpointing": False, "lora_r": 4, "lora_alpha": 8} | changes))


def gradients(folder: Path, recipe: Train) -> dict[str, torch.Tensor]:
    """Gradients of one batch with B off zero, so that A's do not vanish."""
    model = LossModel(build_model(folder, recipe))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.1)
    batch = collate(random_rows(4), 10)
    batch.pop("input_tokens")
    model(**batch)["loss"].backward()
    return {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_only_fp32_adapters_train_and_the_head_has_none(tmp_path: Path, family: str) -> None:
    network = build_model(save_tiny_model(tmp_path / "m", family, tie_word_embeddings=False), settings())
    names = trainable(network)
    assert len(names) == 2 * 7 * 2
    assert all("lora_" in name and tensor.dtype == torch.float32 for name, tensor in names.items())
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_full_trains_every_tensor_in_float32(tmp_path: Path) -> None:
    network = build_model(save_tiny_model(tmp_path / "m"), settings(method="full"))
    assert len(trainable(network)) == len(list(network.parameters()))
    assert all(tensor.dtype == torch.float32 for tensor in network.parameters())


def test_the_seed_fixes_the_start(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    one, same, other = (trainable(build_model(folder, settings(seed=seed))) for seed in (1, 1, 2))
    name = next(name for name in one if "lora_A" in name)
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, method: str) -> None:
    folder = save_tiny_model(tmp_path / "m")
    kept = gradients(folder, settings(method=method))
    again = gradients(folder, settings(method=method, gradient_checkpointing=True))
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        assert (gradient - again[name]).abs().max() <= 1e-6 * max(1.0, gradient.abs().max().item()), name


def test_an_unknown_module_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    with pytest.raises(UserError, match=r"'w_query'.*down_proj.*q_proj") as error:
        build_model(folder, settings(lora_target_modules=["q_proj", "w_query"]))
    assert error.value.where == "train.lora_target_modules"
    with pytest.raises(UserError, match="names no module"):
        build_model(folder, settings(lora_target_modules=[]))


def test_a_rank_above_the_hidden_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="65 is above the model's hidden size 64"):
        build_model(save_tiny_model(tmp_path / "m"), settings(lora_r=65))


def test_the_saved_adapter_names_the_recipes_model(tmp_path: Path) -> None:
    network = build_model(save_tiny_model(tmp_path / "m"), settings())
    (tmp_path / "out").mkdir()
    save_trained(network, tmp_path / "out", BaseModel("owner/name", "abc", "123"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "abc")
    assert str(tmp_path) not in json.dumps(config)
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 28
    assert json.loads((tmp_path / "out" / BASE_FILE).read_text())["weights_sha256"] == "123"


def test_the_saved_adapter_loads_in_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "m")
    network = build_model(folder, settings())
    with torch.no_grad():
        for tensor in trainable(network).values():
            tensor.normal_(std=0.1)
    (tmp_path / "out").mkdir()
    save_trained(network, tmp_path / "out", BaseModel("x", None, "y"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "out")
    ids = torch.arange(1, 9)[None]
    assert torch.allclose(loaded(ids).logits, network.eval()(ids).logits, atol=1e-5)


def test_the_change_of_an_adapter_is_the_norm_of_its_products(tmp_path: Path) -> None:
    network: Any = build_model(save_tiny_model(tmp_path / "m"), settings())
    change = WeightChange(network)
    assert change.norm() == 0
    with torch.no_grad():
        for tensor in trainable(network).values():
            tensor.normal_(std=0.1)
    squares = [
        (module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight).square().sum()
        for module in network.modules()
        if hasattr(module, "lora_A")
    ]
    assert change.norm() == pytest.approx(sum(s.item() for s in squares) ** 0.5, rel=1e-5)


def test_the_change_of_all_weights(tmp_path: Path) -> None:
    network = build_model(save_tiny_model(tmp_path / "m"), settings(method="full"))
    change = WeightChange(network)
    assert change.norm() == 0
    with torch.no_grad():
        next(network.parameters())[3, 5] += 0.5
    assert change.norm() == pytest.approx(0.5, rel=1e-5)


def test_the_base_of_qlora_is_nf4_and_its_scales_are_quantised_too(tmp_path: Path) -> None:
    """Double quantisation takes 0.37 bits a weight less (arXiv 2305.14314): the plan's memory counts on it."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    network = build_model(save_tiny_model(tmp_path / "m"), settings(method="qlora"))
    layers = [module for module in network.modules() if isinstance(module, modules.Linear4bit)]
    assert len(layers) == 2 * 7
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, layer.compute_dtype) == ("nf4", 64, compute)
        assert state.nested
        assert (state.state2.blocksize, state.absmax.dtype) == (256, torch.uint8)


def test_qlora_trains_the_same_after_an_evaluation_as_before(tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16 an evaluation repacks the 4-bit weights, and the backward pass after it is wrong."""
    pytest.importorskip("bitsandbytes")
    folder = save_tiny_model(tmp_path / "m")
    model = LossModel(build_model(folder, settings(method="qlora")))
    batch = collate(random_rows(4), 10)
    batch.pop("input_tokens")

    def gradient() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch)["loss"].backward()
        return [t.grad.clone() for t in trainable(model).values() if t.grad is not None]

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(**batch)
    model.train()
    assert all(torch.equal(one, two) for one, two in zip(before, gradient(), strict=True))


def test_qlora_without_the_switch_would_repack(tmp_path: Path) -> None:
    """Shows that the test above can fail: the same steps with bitsandbytes' default change the stored weights."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    if not modules.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16")
    model = LossModel(build_model(save_tiny_model(tmp_path / "m"), settings(method="qlora")))
    layers = [module for module in model.modules() if isinstance(module, modules.Linear4bit)]
    assert layers
    stored = layers[0].weight.data.clone()
    layers[0].support_avx512bf16_for_cpu = True
    layers[0].eval()
    with torch.no_grad():
        layers[0](torch.randn(2, 64))
    assert layers[0].weight.data.shape != stored.shape or not torch.equal(layers[0].weight.data, stored)


def test_a_head_that_does_more_is_refused(tmp_path: Path) -> None:
    model = LossModel(build_model(save_tiny_model(tmp_path / "m"), settings()))
    model.check_head()
    causal = model.network.get_base_model()  # type: ignore[operator]
    causal.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output * 3)
    with pytest.raises(UserError, match="does more than a product"):
        model.check_head()


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_scale_and_cap_of_other_families_are_known(tmp_path: Path, family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16}, "cohere": {"logit_scale": 0.3}}
    config = AutoConfig.for_model(
        family,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        pad_token_id=0,
        **special.get(family, {"logits_scaling": 4.0}),
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    model = LossModel(build_model(tmp_path / "m", settings()))
    assert model.law.softcap == 2.0 if family == "gemma2" else model.law.scale != 1.0
    model.check_head()
