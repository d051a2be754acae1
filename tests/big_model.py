"""Folders in the shape of real 8B models, cheap to write, and the memory that exporting them takes."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import packaged_fields

from ssd_lite.engines.gguf.tokenizer import write_tokenizer
from ssd_lite.engines.weights.number_formats import CARRIERS, from_float32

# From the models' public config.json.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
_BLOCK = 1 << 24  # numbers that are written again and again; 32 MiB in bfloat16
_SHARD_BYTES = 5 * 10**9
_CHILD = """
import json, sys
from pathlib import Path
from ssd_lite.interrupt import listen
from ssd_lite.stages.export import export_folder
base, adapter, types, out = sys.argv[1:5]
listen()
try:
    done = export_folder(Path(base), types.split(","), Path(out), adapter=Path(adapter), check=False)
    result = {file["type"]: [file["bytes"], file["seconds"]] for file in done["files"]}
except BaseException as error:
    result = {"ended": f"{type(error).__name__}: {error}"}
keys = ("VmHWM", "RssAnon", "RssFile", "RssShmem")
lines = (line.split() for line in open("/proc/self/status"))
result["memory_mib"] = {w[0][:-1]: round(int(w[1]) / 1024) for w in lines if w and w[0][:-1] in keys}
print(json.dumps(result))
"""


def write_big_model(folder: Path, shape: str, *, layers: int | None = None, hole: bool = False) -> int:
    """A model folder in bfloat16 shards; the number of its weights. With `hole` all are zero and take no disk."""
    folder.mkdir(parents=True)
    config = {**SHAPES[shape], "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    config |= {"hidden_act": "silu", "eos_token_id": 2, "torch_dtype": "bfloat16"}
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder, int(config["vocab_size"]) - 200)
    tensors = dict(_tensors(config))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, dims in tensors.items():
        if sum(_bytes(d) for d in shards[-1].values()) + _bytes(dims) > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = dims
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, "BF16", hole=hole)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(int(np.prod(dims)) for dims in tensors.values())


def write_big_adapter(folder: Path, base: Path, rank: int = 16, modules: str = "proj") -> None:
    """A random LoRA adapter on the linear layers of `base` with one of `modules` (with commas) in their names."""
    folder.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text())
    tensors: dict[str, tuple[int, ...]] = {}
    for name, dims in _tensors(config):
        if ".layers." in name and len(dims) == 2 and any(module in name for module in modules.split(",")):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": (rank, dims[1]), f"{module}.lora_B.weight": (dims[0], rank)}
    _write_file(folder / "adapter_model.safetensors", tensors, "F32", hole=False)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, value = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        parts = {"q": (query, hidden), "k": (value, hidden), "v": (value, hidden), "o": (hidden, query)}
        yield from ((f"{at}self_attn.{part}_proj.weight", dims) for part, dims in parts.items())
        if config["model_type"] == "qwen3":
            yield from ((f"{at}self_attn.{part}_norm.weight", (head,)) for part in "qk")
        yield from ((f"{at}mlp.{part}_proj.weight", (inner, hidden)) for part in ("gate", "up"))
        yield f"{at}mlp.down_proj.weight", (hidden, inner)
        yield from ((f"{at}{part}_layernorm.weight", (hidden,)) for part in ("input", "post_attention"))
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def _bytes(dims: tuple[int, ...]) -> int:
    return 2 * int(np.prod(dims))


def _write_file(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str, *, hole: bool) -> None:
    size = CARRIERS[dtype][0]
    header: dict[str, Any] = {}
    offset = 0
    for name, dims in tensors.items():
        end = offset + size * int(np.prod(dims))
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if hole:
            file.truncate(8 + len(text) + offset)
            return
        block = np.random.default_rng(0).normal(0, 0.02, min(_BLOCK, offset // size)).astype(np.float32)
        data = from_float32(block, dtype, "").tobytes()
        for start in range(0, offset, len(data)):
            file.write(memoryview(data)[: offset - start])


def _write_tokenizer(folder: Path, tokens: int) -> None:
    """The packaged tokenizer with pairs of its tokens merged further, up to as many tokens as a real one has."""
    write_tokenizer(packaged_fields(), folder, 4096, "")
    value = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = value["model"]["vocab"], value["model"]["merges"]
    words = [token for token in vocabulary if token.isascii() and token.isalpha()]
    pairs = ((a, b) for a in words for b in words if a + b not in vocabulary)
    for a, b in islice(pairs, max(0, tokens - len(vocabulary))):
        if a + b not in vocabulary:
            vocabulary[a + b] = len(vocabulary)
            merges.append(f"{a} {b}" if isinstance(merges[0], str) else [a, b])
    (folder / "tokenizer.json").write_text(json.dumps(value))


def measure(base: Path, adapter: Path, types: str, out: Path, limit_s: float | None = None) -> dict[str, Any]:
    """What a child process that exports says of its files and of its memory, in MiB."""
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(base), str(adapter), types, str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        text, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)
        text, _ = child.communicate()
    return {**json.loads(text), "seconds": round(time.monotonic() - started, 1)}
