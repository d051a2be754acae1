"""Settings of published config.json files as GGUF metadata, and the settings that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ssd_lite.engines.gguf.architecture import ARCHITECTURES, Architecture, architecture_of, gguf_architecture
from ssd_lite.engines.gguf.names import to_checkpoint_name, to_gguf_name
from ssd_lite.engines.gguf.settings import check_convertible, metadata
from ssd_lite.errors import UserError

# Settings in the spelling of published config.json files: Gemma 3 1B, Phi-4-mini, Mistral 7B, SmolLM3.
GEMMA_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI_4_MINI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32768,
}
SMOLLM3: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "rope_theta": 5000000.0,
    "use_sliding_window": False,
    "vocab_size": 128256,
}


def _architecture(config: dict[str, Any]) -> Architecture:
    return architecture_of(config["architectures"], "model")


@pytest.mark.parametrize("config", [GEMMA_1B, PHI_4_MINI, MISTRAL, SMOLLM3])
def test_published_settings_are_taken(config: dict[str, Any]) -> None:
    check_convertible(_architecture(config), config, "model")


def test_gemma_of_transformers_4_and_5_say_the_same() -> None:
    old = metadata(_architecture(GEMMA_1B), GEMMA_1B)
    assert (old["rope.freq_base"], old["rope.freq_base_swa"]) == (1e6, 1e4)
    assert (old["attention.sliding_window"], old["attention.key_length"]) == (512, 256)
    gone = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
    new = {key: value for key, value in GEMMA_1B.items() if key not in gone}
    new["layer_types"] = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(26)]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    check_convertible(_architecture(new), new, "model")
    assert metadata(_architecture(new), new) == old


def test_phi_4_mini_rotates_three_quarters_of_a_head_under_longrope() -> None:
    values = metadata(_architecture(PHI_4_MINI), PHI_4_MINI)
    assert values["rope.dimension_count"] == 96
    assert values["rope.scaling.original_context_length"] == 4096
    assert values["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert "attention.key_length" not in values


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "mistral-window": (MISTRAL, {"sliding_window": 4096}, "sliding-window"),
    "phi-window": (PHI_4_MINI, {"sliding_window": 2047}, "sliding-window"),
    "smollm3-window": (SMOLLM3, {"use_sliding_window": True, "sliding_window": 4096}, "sliding-window"),
    "smollm3-layers": (SMOLLM3, {"no_rope_layers": [1, 0] * 18}, "every fourth"),
    "smollm3-interval": (SMOLLM3, {"no_rope_layers": None, "no_rope_layer_interval": 3}, "every fourth"),
    "gemma-layers": (GEMMA_1B, {"sliding_window_pattern": 2}, "every sixth"),
    "gemma-scale": (GEMMA_1B, {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar 144"),
    "gemma-cap": (GEMMA_1B, {"attn_logit_softcapping": 50.0}, "capped attention"),
    "gemma-activation": (GEMMA_1B, {"hidden_activation": "gelu"}, "activation gelu"),
    "gemma-rope": (GEMMA_1B, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    "llama-longrope": (MISTRAL, {"rope_scaling": PHI_4_MINI["rope_scaling"]}, "'longrope'"),
    "partial": (MISTRAL, {"partial_rotary_factor": 0.5}, "partly rotated"),
    "yarn-factor": (
        MISTRAL,
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
        "attention_factor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_llama_cpp_would_compute_otherwise_are_refused(case: str) -> None:
    config, change, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as refused:
        check_convertible(_architecture(config), {**config, **change}, "some/model")
    assert "python convert_hf_to_gguf.py some/model --outtype bf16" in str(refused.value.next_step)


def test_a_mistral_that_names_no_window_has_transformers_own() -> None:
    silent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    with pytest.raises(UserError, match="sliding-window"):
        check_convertible(_architecture(silent), silent, "model")


def test_the_27b_gemma_has_another_scale_of_attention() -> None:
    config = {**GEMMA_1B, "num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}
    check_convertible(_architecture(config), {**config, "query_pre_attn_scalar": 168}, "model")
    with pytest.raises(UserError, match="query_pre_attn_scalar 128"):
        check_convertible(_architecture(config), {**config, "query_pre_attn_scalar": 128}, "model")


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.class_name)
def test_names_go_both_ways(architecture: Architecture) -> None:
    for part in architecture.parts:
        name = to_checkpoint_name(f"blk.7.{part}.weight", architecture)
        assert name is not None
        assert to_gguf_name(name, architecture) == f"blk.7.{part}.weight"
    for part in architecture.biases:
        name = to_checkpoint_name(f"blk.7.{part}.bias", architecture)
        assert name is not None
        assert to_gguf_name(name, architecture) == f"blk.7.{part}.bias"
    assert to_gguf_name("model.layers.0.self_attn.rotary.weight", architecture) is None
    assert to_gguf_name("model.embed_tokens.weight", architecture) == "token_embd.weight"


def test_a_bias_that_llama_cpp_would_not_read_has_no_place() -> None:
    gemma = _architecture(GEMMA_1B)
    assert to_gguf_name("model.layers.0.self_attn.q_proj.bias", gemma) is None


def test_a_gguf_of_an_architecture_that_is_only_written_is_not_read() -> None:
    assert gguf_architecture("llama", "x.gguf").class_name == "LlamaForCausalLM"
    with pytest.raises(UserError, match="'gemma3'; read here: llama, qwen2, qwen3"):
        gguf_architecture("gemma3", "x.gguf")
