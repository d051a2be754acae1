"""The architectures that are written as GGUF: names, defaults of their config.json, and what sets each apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssd_lite.errors import UserError

_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_GATED = ("ffn_gate", "ffn_up", "ffn_down")
_PRE_NORMS = ("attn_norm", "ffn_norm")
_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")


@dataclass(frozen=True)
class Architecture:
    """One architecture: its GGUF name, its names in transformers, and its differences from plain llama.

    `defaults` are the settings that transformers takes where config.json is silent and that matter to a GGUF.
    `parts` are the weights that every layer has, by GGUF name, `biases` those of them that may have a bias.
    `permuted`: q and k rows are stored pairwise interleaved in GGUF. `shifted_norms`: GGUF has the norms' weights
    plus 1. `rope_types`: the kinds of rotary scaling that GGUF and llama.cpp express for it. `readable`: a GGUF of it
    can be turned back into a folder here.
    """

    name: str
    class_name: str
    model_type: str
    parts: tuple[str, ...] = (*_PRE_NORMS, *_ATTENTION, *_GATED)
    biases: tuple[str, ...] = ()
    permuted: bool = False
    shifted_norms: bool = False
    activation: str = "silu"
    rope_types: tuple[str, ...] = ("default", "linear", "yarn", "llama3")
    defaults: Mapping[str, Any] = field(default_factory=dict)
    readable: bool = True

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with the architecture's defaults where it is silent."""
        return {**self.defaults, **config}


ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM", "llama", biases=(*_ATTENTION, *_GATED), permuted=True),
    Architecture("llama", "MistralForCausalLM", "mistral", permuted=True, defaults={"sliding_window": 4096}),
    Architecture("qwen2", "Qwen2ForCausalLM", "qwen2", biases=_ATTENTION[:3]),
    Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        "qwen3",
        parts=(*_PRE_NORMS, *_ATTENTION, *_HEAD_NORMS, *_GATED),
        defaults={"head_dim": 128},
    ),
    Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        "smollm3",
        permuted=True,
        defaults={"tie_word_embeddings": True, "rope_theta": 2000000.0, "no_rope_layer_interval": 4},
        readable=False,
    ),
    Architecture(
        "gemma3",
        "Gemma3ForCausalLM",
        "gemma3_text",
        parts=(*_PRE_NORMS, "post_attention_norm", "post_ffw_norm", *_ATTENTION, *_HEAD_NORMS, *_GATED),
        shifted_norms=True,
        activation="gelu_pytorch_tanh",
        rope_types=("default", "linear"),
        defaults={
            "tie_word_embeddings": True,
            "head_dim": 256,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        readable=False,
    ),
    Architecture(
        "phi3",
        "Phi3ForCausalLM",
        "phi3",
        parts=(*_PRE_NORMS, "attn_qkv", "attn_output", "ffn_up", "ffn_down"),
        rope_types=("default", "longrope"),
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        readable=False,
    ),
)


def architecture_of(class_names: Iterable[str], where: str) -> Architecture:
    """The architecture of a config.json. Raises UserError that names llama.cpp's own converter."""
    names = list(class_names)
    for architecture in ARCHITECTURES:
        if architecture.class_name in names:
            return architecture
    raise unsupported(f"the architecture {', '.join(names) or 'of this model'}", where)


def unsupported(what: str, where: str) -> UserError:
    """The error for a model this program cannot write as GGUF, with the command that can."""
    known = ", ".join(a.class_name for a in ARCHITECTURES)
    return UserError(
        f"{what} cannot be written as GGUF here (known: {known}).",
        where=where,
        next_step="Use llama.cpp's own converter: "
        f"python convert_hf_to_gguf.py {where} --outtype bf16 --outfile model-bf16.gguf",
    )


def gguf_architecture(name: str, where: str) -> Architecture:
    """The architecture of a GGUF's `general.architecture`. Raises UserError if it is not read here."""
    readable = [architecture for architecture in ARCHITECTURES if architecture.readable]
    for architecture in readable:
        if architecture.name == name:
            return architecture
    raise UserError(
        f"the GGUF has the architecture {name!r}; read here: {', '.join(dict.fromkeys(a.name for a in readable))}.",
        where=where,
        next_step="Name the model's Hugging Face folder or Hub id instead.",
    )
