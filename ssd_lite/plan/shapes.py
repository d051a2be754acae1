"""The shape of a decoder model from its config.json: widths, layers, counts. Those of shipped recipes are packaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from ssd_lite.errors import UserError

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Two-matrix MLPs: up, activation, down.
_WITHOUT_GATE = ("arcee", "apertus")
# One matrix for queries, keys and values, one for gate and up.
_FUSED = ("phi3",)
_QK_NORM_HEAD, _QK_NORM_WHOLE = ("qwen3", "gemma3_text"), ("olmo2", "olmo3")
# Families whose head is the embedding where config.json does not say.
_TIED = ("gemma", "gemma2", "gemma3_text", "smollm3")


@dataclass(frozen=True)
class Shape:
    """A dense decoder. Widths in numbers; `weight_bytes` is what a number takes in the base's checkpoint.

    `qk_norm` is the number of weights in a layer's norms of queries and keys, 0 without; `qkv_bias` says whether the
    three projections have biases, `fused` whether they are one matrix, and gate and up another.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    gated: bool = True
    qk_norm: int = 0
    qkv_bias: bool = False
    weight_bytes: int = 2
    context: int = 0
    fused: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Linear modules of a layer: name → (input width, output width)."""
        if self.fused:
            return {
                "qkv_proj": (self.hidden, self.query_width + 2 * self.kv_width),
                "o_proj": (self.query_width, self.hidden),
                "gate_up_proj": (self.hidden, 2 * self.intermediate),
                "down_proj": (self.intermediate, self.hidden),
            }
        gate = {"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            **gate,
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' linear modules: what NF4 quantises and LoRA adapts."""
        return self.layers * sum(width * out for width, out in self.modules.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """Weights of the output head; 0 where it is the embedding."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def small_parameters(self) -> int:
        """Norms and biases."""
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        return self.layers * (2 * self.hidden + self.qk_norm + biases) + self.hidden

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint, a tied head counted once."""
        return self.linear_parameters + self.embedding_parameters + self.head_parameters + self.small_parameters

    @property
    def kv_numbers_per_token(self) -> int:
        """Numbers that a token keeps in the cache: key and value of every layer."""
        return 2 * self.layers * self.kv_width

    def adapted(self, targets: list[str] | str) -> dict[str, tuple[int, int]]:
        """The modules of a layer that get an adapter; `targets` as in train.lora_target_modules."""
        if isinstance(targets, str):
            return self.modules
        return {name: size for name, size in self.modules.items() if any(name.endswith(target) for target in targets)}

    def lora_parameters(self, targets: list[str] | str, rank: int) -> int:
        """Weights of all adapters: rank x (input + output) a module."""
        return self.layers * sum(rank * (width + out) for width, out in self.adapted(targets).values())


def from_config(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a config.json describes. Raises UserError for mixtures of experts and for missing keys."""
    text = config.get("text_config") or config
    if any(text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UserError(
            "is a mixture of experts; the plan's formulas are for dense models.",
            where=where,
            next_step="Measure it: ssd-lite run with --set problems.train_limit=8 --set train.max_steps=2",
        )
    try:
        hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        layers, vocabulary = int(text["num_hidden_layers"]), int(text["vocab_size"])
        intermediate = int(text["intermediate_size"])
        if min(hidden, heads, layers, vocabulary, intermediate) < 1:
            raise ValueError("a size of 0")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"says too little for a plan ({error}).", where=where, next_step="Name a dense decoder model's config."
        ) from error
    kind, kv_heads = str(text.get("model_type", "")), int(text.get("num_key_value_heads") or heads)
    head_size = int(text.get("head_dim") or hidden // heads)
    per_head, whole = kind in _QK_NORM_HEAD, kind in _QK_NORM_WHOLE
    return Shape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=vocabulary,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind in _TIED))),
        gated=kind not in _WITHOUT_GATE,
        qk_norm=2 * head_size if per_head else (heads + kv_heads) * head_size if whole else 0,
        qkv_bias=kind == "qwen2" or bool(text.get("attention_bias")),
        weight_bytes=_FLOAT_BYTES.get(str(text.get("dtype") or text.get("torch_dtype") or "bfloat16"), 2),
        context=int(text.get("max_position_embeddings") or 0),
        fused=kind in _FUSED,
    )


@cache
def packaged_shapes() -> dict[str, dict[str, Any]]:
    """Model name → config, published parameter count and source, for the models of the shipped recipes."""
    text = resources.files("ssd_lite.plan").joinpath("data/shapes.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def packaged_shape(name: str) -> Shape | None:
    """The shape of a model of a shipped recipe; None for another."""
    entry = packaged_shapes().get(name)
    return None if entry is None else from_config(entry["config"], name)
