"""A LoRA adapter in PEFT's format: what it does to which weight of which base, refused where that is not plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_lite.engines.weights.model_folder import ModelFolder, read_json
from ssd_lite.engines.weights.number_formats import to_float32
from ssd_lite.engines.weights.safetensors_file import SafetensorsFile
from ssd_lite.errors import UserError

BASE_FILE = "ssd_lite_base.json"
CHECKPOINT_NAMES = "checkpoint_names"
# Settings of PEFT's LoraConfig that make it more than W + scale · B A, and the values that switch them off.
_PLAIN = {
    "use_dora": (False,),
    "modules_to_save": ([],),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "bias": ("none",),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "alora_invocation_tokens": ([],),
    "arrow_config": (),
    "corda_config": (),
}

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Update:
    """The change of one weight: scale · b @ a with a [r, in], b [out, r], float32."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float


class Adapter:
    """An adapter folder, read and checked against its base.

    Its modules have the names of the loaded model. Where the base's files have others (a language model inside a
    multimodal one), training noted them in BASE_FILE under CHECKPOINT_NAMES, and `weights` are those.

    Raises UserError for an adapter of another base and for kinds of adapter that are not merged here.
    """

    def __init__(self, folder: Path, base: ModelFolder, base_sha256: str) -> None:
        self.folder = folder
        self._config = read_json(folder / "adapter_config.json")
        _refuse_other_kinds(self._config, folder)
        refuse_another_base(folder, base_sha256)
        self._file = SafetensorsFile(folder / "adapter_model.safetensors")
        self._modules = self._read_modules()
        self._module_of = _checkpoint_names(list(self._modules), folder)
        tied = bool(base.config.get("tie_word_embeddings"))
        for weight, module in self._module_of.items():
            _check_fit(weight, self._modules[module], base, folder, tied)

    @property
    def weights(self) -> list[str]:
        """Checkpoint names of the weights that change."""
        return list(self._module_of)

    def update(self, weight: str) -> Update:
        """The change of one of `weights`."""
        module = self._module_of[weight]
        a, b = (self._load(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
        return Update(a, b, _scale(self._config, module, len(a), self.folder))

    def _load(self, name: str) -> NDArray[np.float32]:
        return to_float32(self._file.array(name), self._file.tensors[name].dtype)

    def _read_modules(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        sides: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, info in self._file.tensors.items():
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
            if match is None:
                raise UserError(f"the tensor {name} is not of a plain LoRA.", where=str(self._file.path))
            sides.setdefault(match[1], {})[match[2]] = info.shape
        for module, shapes in sides.items():
            if set(shapes) != {"A", "B"}:
                raise UserError(f"{module} has lora_A or lora_B only.", where=str(self._file.path))
        if not sides:
            raise UserError("holds no tensor.", where=str(self._file.path), next_step="Train again.")
        return {module: (shapes["A"], shapes["B"]) for module, shapes in sides.items()}


def _refuse_other_kinds(config: Mapping[str, Any], folder: Path) -> None:
    reason = not_plain(config)
    if reason is not None:
        raise UserError(reason[0], where=str(folder / "adapter_config.json"), next_step=reason[1])


def not_plain(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why an adapter of this `adapter_config.json` is not merged here, and what to do instead; None where it is."""
    if config.get("peft_type") != "LORA":
        return f"is an adapter of the kind {config.get('peft_type')}; only LORA is merged here.", ""
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return (
            f"init_lora_weights is {start!r}, which changed the base while training; it is not merged here.",
            "Convert the adapter to plain LoRA with PEFT first.",
        )
    for key, off in _PLAIN.items():
        value = config.get(key)
        if value is not None and value not in off:
            return f"{key} is {value!r}, which is not merged here.", "Merge it with PEFT's merge_and_unload."
    return None


def _checkpoint_names(modules: list[str], folder: Path) -> dict[str, str]:
    """Name of the weight in the base's files → name of the module in the loaded model."""
    file = folder / BASE_FILE
    noted = (read_json(file).get(CHECKPOINT_NAMES) if file.is_file() else None) or {}
    names = {noted.get(f"{module}.weight", f"{module}.weight"): module for module in modules}
    if len(names) != len(modules):
        raise UserError(f"{CHECKPOINT_NAMES} gives two weights one name.", where=str(file), next_step="Train again.")
    return names


def refuse_another_base(folder: Path, base_sha256: str) -> None:
    """Raise UserError where BASE_FILE in `folder` says that it was trained on weights of another hash."""
    file = folder / BASE_FILE
    if not file.is_file():
        return
    recorded = read_json(file)
    if recorded.get("weights_sha256") not in (None, base_sha256):
        raise UserError(
            f"was trained on {recorded.get('name')} with other weights (hash {str(recorded['weights_sha256'])[:12]}…, "
            f"this base has {base_sha256[:12]}…).",
            where=str(folder),
            next_step="Merge it into the base it was trained on.",
        )


def _check_fit(
    weight: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], base: ModelFolder, folder: Path, tied: bool
) -> None:
    a, b = shapes
    if weight == "lm_head.weight" and tied:
        raise UserError(
            "adapts the output head, whose weights are those of the embedding too (tied).",
            where=str(folder),
            next_step="Leave lm_head out of train.lora_target_modules.",
        )
    info = base.tensors.get(weight)
    found = "has no such tensor" if info is None else f"has the shape {list(info.shape)} there"
    if info is None or len(a) != 2 or len(b) != 2 or a[0] != b[1] or info.shape != (b[0], a[1]):
        raise UserError(
            f"is an adapter of another base: it wants {weight} as [{b[0]}, {a[-1]}], {base.folder} {found}.",
            where=str(folder),
            next_step="Merge it into the base it was trained on. If this is it, loaded weights have other names than "
            "its files give them: PEFT's merge_and_unload merges it.",
        )


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """lora_alpha / r, or / sqrt(r) with rsLoRA; patterns fit a module's whole name or its end, as in PEFT."""
    wanted = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if wanted != rank:
        raise UserError(
            f"{module} has rank {rank}, adapter_config.json says {wanted}.",
            where=str(folder),
            next_step="The two files do not belong together; train again.",
        )
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default
