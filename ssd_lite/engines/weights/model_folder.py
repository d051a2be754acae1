"""A Hugging Face model folder on disk: refused early if it is none, its tensors by name, the hash of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ssd_lite.engines.weights.model_cache import file_sha256
from ssd_lite.engines.weights.number_formats import Array
from ssd_lite.engines.weights.safetensors_file import SafetensorsFile, TensorInfo
from ssd_lite.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SOURCE_FILE = "ssd_lite_source.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model. Raises UserError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=str(path)) from error
    except ValueError as error:
        raise UserError(f"is no JSON ({error}).", where=str(path)) from error
    if not isinstance(value, dict):
        raise UserError("is no JSON object.", where=str(path))
    return value


class ModelFolder:
    """The tensors of a folder of safetensors shards. Raises UserError for everything that is no usable model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _refuse_what_is_no_model(folder)
        self.config = read_json(folder / "config.json")
        _refuse_config(self.config, folder)
        self.shards = [SafetensorsFile(path) for path in weight_files(folder)]
        self._shard_of: dict[str, SafetensorsFile] = {}
        for shard in self.shards:
            for name in shard.tensors:
                if name in self._shard_of:
                    raise UserError(f"the tensor {name} stands in two files.", where=str(shard.path))
                self._shard_of[name] = shard
        _check_index(folder, self._shard_of)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's place, by its checkpoint name."""
        return {name: shard.tensors[name] for name, shard in self._shard_of.items()}

    def blocks(self, name: str) -> Iterator[Array]:
        """The tensor in blocks of whole rows, in its own number format."""
        return self._shard_of[name].blocks(name)

    @property
    def parameter_count(self) -> int:
        """Numbers in all tensors."""
        return sum(info.count for info in self.tensors.values())

    @cached_property
    def dtype(self) -> str:
        """The number format of most of the numbers: "F32", "F16" or "BF16"."""
        counts: dict[str, int] = {}
        for info in self.tensors.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + info.count
        return max(counts, key=lambda dtype: counts[dtype])


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those of the index, else model.safetensors, else every *.safetensors."""
    index = folder / INDEX_FILE
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise UserError(
                f"names {', '.join(missing) or 'no file'}, which is not there.",
                where=str(index),
                next_step="Fetch the model again.",
            )
        return [folder / name for name in names]
    single = folder / SINGLE_FILE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def header_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor's place by its checkpoint name, from the headers alone; `folder` may lack a tokenizer."""
    return {name: info for path in weight_files(folder) for name, info in SafetensorsFile(path).tensors.items()}


def _check_index(folder: Path, found: dict[str, SafetensorsFile]) -> None:
    index = folder / INDEX_FILE
    if not index.is_file():
        return
    for name, file in read_json(index)["weight_map"].items():
        if name not in found or found[name].path.name != file:
            raise UserError(f"says that {file} holds {name}, which it does not.", where=str(index))


def _refuse_what_is_no_model(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError("is no folder.", where=str(folder.absolute()))
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            "is an adapter, not a model.", where=str(folder), next_step="Name its base model, or a merged folder."
        )
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not weight_files(folder):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles:
            raise UserError(
                f"has its weights as a pickle ({pickles[0]}) only; those can run code when loaded and are refused.",
                where=str(folder),
                next_step="Name a copy of the model in safetensors.",
            )
        missing.append("*.safetensors")
    if missing:
        raise UserError(
            f"is no model folder: {', '.join(missing)} is missing.",
            where=str(folder.absolute()),
            next_step="Name a folder with config.json, tokenizer.json and safetensors weights.",
        )


def _refuse_config(config: dict[str, Any], folder: Path) -> None:
    where = str(folder / "config.json")
    if config.get("auto_map"):
        raise UserError(
            f"the model brings its own code ({', '.join(map(str, config['auto_map']))}), which is never run here.",
            where=where,
            next_step="Name a model whose architecture transformers knows.",
        )
    quantisation = config.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
        raise UserError(
            f"the weights are quantised ({method}); training and merging need them in 16 or 32 bits.",
            where=where,
            next_step="Name the 16-bit model it was made from.",
        )


def weights_sha256(folder: Path) -> str:
    """One hash of the weights: SHA-256 over the sorted lines "file-name file-sha256"."""
    lines = [f"{path.name} {file_sha256(path)}\n" for path in sorted(weight_files(folder))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
