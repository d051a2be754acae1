"""The trained model: a frozen base with fp32 LoRA adapters (16-bit, fp32 or 4-bit NF4 base), or all weights."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd_lite.engines.training.adapted_modules import adapted_modules, check_plain, is_named, linear_modules, refusal
from ssd_lite.engines.training.mergeable import check_mergeable, other_names
from ssd_lite.engines.weights.adapter import BASE_FILE, CHECKPOINT_NAMES
from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.recipe import Train


@dataclass(frozen=True)
class BaseModel:
    """What the adapter stands on: the recipe's name, the resolved revision, and the hash of the weights."""

    name: str
    revision: str | None
    weights_sha256: str


def build_model(folder: Path, settings: Train) -> nn.Module:
    """Load `folder` (safetensors) for training by `settings.method`; only trainable tensors require a gradient.

    lora and qlora give a PeftModel whose adapters are float32; full gives the causal model in float32, because small
    learning rates are lost in bfloat16 weights. The base is float32 on a CPU and bfloat16 on a CUDA card.
    Raises UserError for modules the model does not have, for a rank above its hidden size, and for what could not be
    merged afterwards.
    """
    torch.manual_seed(settings.seed)
    base = load_base(folder, settings.method)
    if settings.method == "full":
        base.requires_grad_(True)
        network: nn.Module = base
    else:
        network = _with_adapters(base, settings)
    check_mergeable(network, folder)
    if settings.gradient_checkpointing:
        _recompute_activations(base)
    network.train()
    return network


def check_trainable(folder: Path, settings: Train) -> None:
    """Raise now the UserErrors of `build_model` that need no weights; reads the headers of `folder` only."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(folder, device_map="meta", local_files_only=True, use_safetensors=True)
    check_mergeable(base if settings.method == "full" else _with_adapters(base, settings), folder)


def _recompute_activations(base: Any) -> None:
    options = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):  # the name since transformers 5.2x
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def load_base(folder: Path, method: str) -> Any:
    """The base in `folder` as `method` trains on it: NF4 for qlora, else bfloat16 on a card and float32 without."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    on_card = torch.cuda.is_available()
    number_format = torch.bfloat16 if on_card and method != "full" else torch.float32
    options: dict[str, Any] = {"dtype": number_format, "local_files_only": True, "use_safetensors": True}
    if method == "qlora":
        options["quantization_config"] = _nf4(torch.bfloat16 if on_card else torch.float32)
        options["device_map"] = {"": torch.cuda.current_device() if on_card else "cpu"}
    try:
        base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)
    if method == "qlora":
        prepare_quantised(base)
    base.config.use_cache = False
    return base


def _nf4(compute: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingLibraryError("bitsandbytes", needed_for="train.method: qlora", extra="qlora")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def prepare_quantised(base: nn.Module) -> None:
    """Freeze a 4-bit base, its norms and biases in float32, without a repacking that breaks the backward pass.

    bitsandbytes 0.50 repacks 4-bit weights for AVX512-BF16 at the first evaluation without gradient; the backward pass
    reads the repacked bytes as if they were the old ones. Embedding and output head keep their format: in float32 they
    would take gigabytes and they are not trained.
    """
    from bitsandbytes.nn import Linear4bit

    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    for parameter in base.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _with_adapters(base: Any, settings: Train) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    check_adapter(base, settings)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=adapted_modules(base, settings.lora_target_modules),
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an older name
        try:
            network: Any = get_peft_model(base, config, autocast_adapter_dtype=True)
        except ValueError as error:
            if "Cannot convert PEFT target" not in str(error):
                raise
            raise refusal(f"PEFT takes these modules for experts ({error}).") from error
    check_plain(network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    adapted: nn.Module = network
    return adapted


def check_adapter(base: Any, settings: Train) -> None:
    """Raise UserError for a rank above the model's hidden size, and for modules that the model does not have."""
    hidden_size = base.config.get_text_config().hidden_size
    if settings.lora_r > hidden_size:
        raise UserError(
            f"rank {settings.lora_r} is above the model's hidden size {hidden_size}.",
            where="train.lora_r",
            next_step="Set a smaller rank; 8 to 64 are usual.",
        )
    targets = settings.lora_target_modules
    if isinstance(targets, str):
        if not adapted_modules(base, targets):
            raise UserError(
                f"{type(base).__name__} has no plain linear module that could get an adapter.",
                where="train.lora_target_modules",
                next_step="Set train.method: full, or take another model.",
            )
        return
    names = linear_modules(base)
    unknown = [target for target in targets if not any(is_named(name, target) for name in names)]
    if unknown or not targets:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        raise UserError(
            f"no module {', '.join(map(repr, unknown))} in this model." if unknown else "names no module.",
            where="train.lora_target_modules",
            next_step=f"Modules that can get an adapter: {known}; or all-linear.",
        )


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that train, by name; a tied tensor appears once."""
    return {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}


def save_trained(network: Any, folder: Path, base: BaseModel) -> None:
    """Write what merging needs into an empty folder: PEFT's two adapter files, or all weights under checkpoint names.

    Full fine-tuning writes `model.safetensors`, or numbered shards with `model.safetensors.index.json`, in float32.
    Both write BASE_FILE, with the checkpoint names of adapted weights that are called otherwise in the loaded model.
    `adapter_config.json` names the recipe's model, never a path of the cache.
    """
    recorded: dict[str, Any] = asdict(base)
    if hasattr(network, "peft_config"):
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        config = network.peft_config["default"]
        config.base_model_name_or_path, config.revision = base.name, base.revision
        config.inference_mode = True
        config.auto_mapping = None  # Unsloth sets one for its own classes; task_type says what PEFT needs
        state = get_peft_model_state_dict(network, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        names = other_names(network)
        recorded |= {CHECKPOINT_NAMES: names} if names else {}
    else:
        network.save_pretrained(folder)
    (folder / BASE_FILE).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
