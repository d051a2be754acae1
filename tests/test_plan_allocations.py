"""The plan's activations against what torch keeps and allocates, bfloat16 autocast included, on small models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config  # noqa: E402

from ssd_lite.engines.training import peft_model  # noqa: E402
from ssd_lite.engines.training.batching import TrainingRow, collate  # noqa: E402
from ssd_lite.engines.training.loss_model import LossModel  # noqa: E402
from ssd_lite.engines.weights.model_folder import read_json  # noqa: E402
from ssd_lite.plan import training_memory as memory  # noqa: E402
from ssd_lite.plan.shapes import Shape, from_config  # noqa: E402
from ssd_lite.recipe import Train  # noqa: E402

TOKENS, LAYERS = 512, 3
SIZES = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
CASES = [
    ("lora", "llama", False), ("lora", "qwen3", True), ("qlora", "llama", True), ("full", "llama", True),
    ("full", "qwen3", False),
]  # fmt: skip


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Load the base in bfloat16, as build_model does on a card."""
    with pytest.MonkeyPatch.context() as patch:
        load, nf4 = AutoModelForCausalLM.from_pretrained, peft_model._nf4

        def load_bfloat16(folder: Path, **options: Any) -> Any:
            return load(folder, **{**options, "dtype": torch.bfloat16})

        patch.setattr(AutoModelForCausalLM, "from_pretrained", load_bfloat16)
        patch.setattr(peft_model, "_nf4", lambda compute: nf4(torch.bfloat16))
        yield


def make(
    folder: Path, settings: Train, family: str, *, card: bool, layers: int = LAYERS
) -> tuple[LossModel, Shape, dict[str, Any]]:
    """A tiny model ready to train, its shape, and a batch of one row of TOKENS."""
    kind = Qwen3Config if family == "qwen3" else LlamaConfig
    sizes = {**SIZES, "num_hidden_layers": layers, "vocab_size": 300, "tie_word_embeddings": True}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(kind(**sizes)).save_pretrained(folder)
    with as_on_a_card() if card and settings.method != "full" else nullcontext():
        model = LossModel(peft_model.build_model(folder, settings))
    ids = tuple(index % 299 for index in range(TOKENS))
    batch = collate([TrainingRow(ids[:128], ids[128:])], TOKENS)
    batch.pop("input_tokens")
    return model, from_config(read_json(folder / "config.json"), "tiny"), batch


def loss_of(model: LossModel, batch: dict[str, Any], *, card: bool) -> Any:
    with torch.autocast("cpu", torch.bfloat16, enabled=card):
        return model(**batch)["loss"]


def kept_bytes(model: LossModel, batch: dict[str, Any], *, card: bool) -> int:
    """Bytes of all tensors with a row for each token that autograd keeps in a forward pass, each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and TOKENS in tensor.shape:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, batch, card=card)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize(("method", "family", "card"), CASES)
def test_saved_bytes_of_a_layer_are_those_that_autograd_keeps(
    method: Any, family: str, card: bool, targets: Any, tmp_path: Path
) -> None:
    """Two more layers keep two layers more: the edges of the model drop out."""
    settings = Train(method=method, lora_r=8, gradient_checkpointing=False, lora_target_modules=targets)
    found = []
    for layers in (2, 4):
        model, shape, batch = make(tmp_path / str(layers), settings, family, card=card, layers=layers)
        found.append(kept_bytes(model, batch, card=card))
    planned = TOKENS * memory.saved_per_token(shape, settings, on_card=card)
    assert planned == pytest.approx((found[1] - found[0]) / 2, rel=0.02)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("method", "family", "card"), CASES)
def test_a_step_allocates_what_the_plan_says(
    method: Any, family: str, card: bool, checkpointing: bool, tmp_path: Path
) -> None:
    """Forward and backward pass, weights and optimiser apart: the peak of torch's own allocations."""
    settings = Train(method=method, lora_r=8, gradient_checkpointing=checkpointing)
    model, shape, batch = make(tmp_path / "m", settings, family, card=card)
    loss_of(model, batch, card=card).backward()  # gradients are there before the step that is measured
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss_of(model, batch, card=card).backward()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    lying = peak = 0
    for _, change in changes:
        lying += change
        peak = max(peak, lying)
    assert peak > 0
    kept, layer = memory._activations(shape, settings, TOKENS, card)
    moments = (
        kept + memory._logits(shape, settings, TOKENS, card),
        kept + layer + memory._passing(shape, settings, TOKENS, card),
    )
    # Too little would be an out-of-memory error; the edges weigh more in a tiny model than in one of 4B.
    assert 0.9 * peak < max(moments) < 1.25 * peak
