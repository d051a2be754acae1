"""Can what is trained be merged: under which names and shapes the model's folder holds the weights that will change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd_lite.engines.weights.model_folder import header_tensors
from ssd_lite.errors import UserError

_PEFT_PREFIX, _ADAPTER = "base_model.model.", "default"
# Of each tensor that trains: its name in the model's files, None where it has none there; its shape; words about it.
_Wanted = list[tuple[str | None, tuple[int, ...], str]]


def adapted_weights(network: Any) -> dict[str, tuple[int, int]]:
    """Shape [out, in] of each weight that has a LoRA adapter, by the name it has in the loaded base.

    Asked is the adapter that is saved; GRPO with a KL term holds a second one, where training started.
    """
    shapes = {}
    for name, module in network.named_modules():
        if _ADAPTER in getattr(module, "lora_A", {}):
            down, up = module.lora_A[_ADAPTER], module.lora_B[_ADAPTER]
            shapes[f"{name.removeprefix(_PEFT_PREFIX)}.weight"] = (up.weight.shape[0], down.weight.shape[1])
    return shapes


def checkpoint_name(causal: Any, weight: str, shape: tuple[int, int]) -> str | None:
    """The name in the model's folder of a loaded weight of this `shape`; None where loading did more than rename it.

    Loading may rename (a language model inside a multimodal one) or fuse (experts); transformers remembers how this
    model was loaded and undoes it when it saves. What is undone by a copy was fused or permuted.
    """
    from transformers.core_model_loading import revert_weight_conversion

    probe = torch.empty(shape, device="meta")
    saved: dict[str, Tensor] = revert_weight_conversion(causal, {weight: probe})
    name, tensor = next(iter(saved.items()))
    return name if len(saved) == 1 and tensor is probe else None


def other_names(network: Any) -> dict[str, str]:
    """Name in the loaded base → name in its folder of the adapted weights whose names differ."""
    causal = network.get_base_model()
    names = {weight: checkpoint_name(causal, weight, shape) for weight, shape in adapted_weights(network).items()}
    return {weight: name for weight, name in names.items() if name is not None and name != weight}


def check_mergeable(network: Any, folder: Path) -> None:
    """Raise UserError where a tensor that `network` trains is not in the files of `folder`, with its shape.

    Reads headers only; weights may be on the meta device. `network` is a PeftModel, or a causal model trained whole.
    """
    held = header_tensors(folder)
    wanted = _adapted(network) if hasattr(network, "peft_config") else _whole(network)
    unfit = [words for name, shape, words in wanted if name not in held or held[name].shape != shape]
    if not unfit:
        return
    first = ", ".join(unfit[:3]) + (", …" if len(unfit) > 3 else "")
    raise UserError(
        f"what is trained on this model cannot be merged: its files hold no tensor for {len(unfit)} of {len(wanted)} "
        f"weights that would be trained ({first}).",
        where=str(folder),
        next_step="Name in train.lora_target_modules only modules whose weights are there (train.method lora or "
        "qlora), or take another copy of the model.",
    )


def _adapted(network: Any) -> _Wanted:
    causal = network.get_base_model()
    wanted: _Wanted = []
    for weight, shape in adapted_weights(network).items():
        name = checkpoint_name(causal, weight, shape)
        became = "" if name == weight else f", there {name}" if name else ", in another form there"
        wanted.append((name, shape, f"{weight} {list(shape)}{became}"))
    return wanted


def _whole(network: Any) -> _Wanted:
    """A tied tensor appears once, as it does when the model is saved."""
    from transformers.core_model_loading import revert_weight_conversion

    loaded = {name: torch.empty_like(tensor, device="meta") for name, tensor in network.named_parameters()}
    saved = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(network, loaded).items()}
    return [(name, shape, f"{name} {list(shape)}") for name, shape in saved.items()]
