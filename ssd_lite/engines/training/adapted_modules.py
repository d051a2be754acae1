"""Which modules get an adapter: plain linear ones of the language model, so that the adapter can be merged."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssd_lite.engines.weights.adapter import not_plain
from ssd_lite.errors import UserError


def linear_modules(base: Any) -> list[str]:
    """Names of the linear modules of the language model, without its output head.

    Towers for images and sound are left out: text moves nothing in them. Experts and routers of mixture models are no
    linear modules since transformers 5.
    """
    head, decoder = base.get_output_embeddings(), base.get_decoder()
    inside = {id(module) for module in (base if decoder is None else decoder).modules()}
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not head and id(module) in inside
    ]


def is_named(name: str, target: str) -> bool:
    """Does `target` mean the module `name`, as PEFT reads it: its whole name, or the end of it?"""
    return f".{name}".endswith(f".{target}")


def adapted_modules(base: Any, targets: list[str] | str) -> list[str]:
    """What to give PEFT as target_modules for train.lora_target_modules: short names where they mean no other module.

    PEFT of itself would take all-linear for experts and router of a mixture model, too, and a name for every module
    that ends so, in an image tower, too.
    """
    linear = linear_modules(base)
    if isinstance(targets, str):
        names = _left_alone(base, linear)
        short = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    else:
        names = [name for name in linear if any(is_named(name, target) for target in targets)]
        short = list(targets)
    meant = {name for name, _ in base.named_modules() if any(is_named(name, target) for target in short)}
    return short if meant == set(names) else names


def _left_alone(base: Any, names: list[str]) -> list[str]:
    """Those that PEFT does not rewrite: it takes gate_proj of a shared expert for the fused experts' gate_up_proj."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # before it rewrote anything
        return names
    config = LoraConfig(target_modules=names)
    convert_peft_config_for_transformers(config, base, None)
    return [name for name in names if name in config.target_modules]


def check_plain(network: Any) -> None:
    """Raise UserError before any step where PEFT made another adapter of the targets than one that is merged here."""
    config = network.peft_config["default"].to_dict()
    reason = not_plain({key: sorted(value) if isinstance(value, set) else value for key, value in config.items()})
    if reason is not None:
        raise refusal(f"of these modules PEFT makes an adapter whose {reason[0]}")


def refusal(what: str) -> UserError:
    """The error for targets that give no adapter that could be merged."""
    return UserError(
        what,
        where="train.lora_target_modules",
        next_step="Set all-linear, which takes the linear modules that can be merged.",
    )
