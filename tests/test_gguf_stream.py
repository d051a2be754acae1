"""Writing a GGUF: llama.cpp computes what transformers computes, and what cannot be written is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from plain_gguf import write_gguf
from tiny_models import LLAMA3_ROPE, hf_logits, llama_logits, packaged_folder, save_tiny

from ssd_lite.engines.gguf.read import open_gguf, write_folder
from ssd_lite.engines.weights.model_folder import ModelFolder
from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding

pytest.importorskip("llama_cpp")
MODELS = {
    "llama": ("llama", {}),
    "llama-tied-bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0, "head_dim": 32}),
    "qwen2": ("qwen2", {"rope_theta": 1000000.0}),
    "qwen3-tied": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": (
        "qwen3",
        {"head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
}
IDS = [1, *range(100, 160), 7, 9, 900]


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    kind, settings = MODELS[name]
    folder = save_tiny(tmp_path / "model", kind, **settings)
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    ours, theirs = llama_logits(tmp_path / "m.gguf", IDS), hf_logits(folder, IDS)
    # llama.cpp keeps keys and values in float16: about three digits.
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)
    assert ours.argmax() == theirs.argmax()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("gguf_type", "dtype"), [("f32", "float32"), ("bf16", "bfloat16")])
def test_round_trip_gives_equal_tensors_and_settings(name: str, gguf_type: str, dtype: str, tmp_path: Path) -> None:
    kind, settings = MODELS[name]
    folder = save_tiny(tmp_path / "model", kind, dtype=dtype, **settings)
    write_gguf(folder, tmp_path / "a.gguf", gguf_type)
    (tmp_path / "back").mkdir()
    write_folder(tmp_path / "a.gguf", tmp_path / "back", "0")
    write_gguf(tmp_path / "back", tmp_path / "b.gguf", gguf_type)
    first, second = open_gguf(tmp_path / "a.gguf"), open_gguf(tmp_path / "b.gguf")
    ignored = {"general.name"}
    assert {k: v for k, v in first.fields.items() if k not in ignored} == {
        k: v for k, v in second.fields.items() if k not in ignored
    }
    assert list(first.tensors) == list(second.tensors) or set(first.tensors) == set(second.tensors)
    for tensor, other in ((first.tensors[key], second.tensors[key]) for key in first.tensors):
        assert tensor.tensor_type == other.tensor_type
        assert np.array_equal(np.asarray(tensor.data), np.asarray(other.data))


def test_one_dimensional_tensors_stay_float32_and_a_tied_head_is_left_out(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen3", tie_word_embeddings=True)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    tensors = open_gguf(tmp_path / "m.gguf").tensors
    assert "output.weight" not in tensors
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1} == {"F32"}
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 2} == {"F16"}


def test_decoding_and_end_tokens_are_in_the_metadata(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f16", decoding=Decoding(temperature=1.1, top_k=20, top_p=0.8))
    fields = open_gguf(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.eot_token_id"] == 0
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert [round(float(fields[f"general.sampling.{k}"]), 6) for k in ("temp", "top_k", "top_p", "min_p")] == [
        1.1,
        20,
        0.8,
        0,
    ]


def _edit(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _bad_models() -> dict[str, tuple[str, dict[str, object], str]]:
    cut = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
    return {
        "architecture": ("config.json", {"architectures": ["MambaForCausalLM"]}, "convert_hf_to_gguf.py"),
        "activation": ("config.json", {"hidden_act": "gelu"}, "activation gelu"),
        "window": ("config.json", {"use_sliding_window": True}, "sliding-window"),
        "rope": ("config.json", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "longrope"),
        "cut": ("tokenizer.json", {"pre_tokenizer": cut}, "pre-tokenizer"),
        "normaliser": ("tokenizer.json", {"normalizer": {"type": "NFKC"}}, "NFKC"),
        "vocabulary": ("config.json", {"vocab_size": 100}, "vocab_size is 100"),
    }


@pytest.mark.parametrize("case", _bad_models())
def test_what_cannot_be_written_is_refused_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    file, change, words = _bad_models()[case]
    folder = save_tiny(tmp_path / "model", num_hidden_layers=1)
    _edit(folder / file, change)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=re.escape(words)):
        write_gguf(folder, tmp_path / "out" / "m.gguf", "f16")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_tensor_and_a_weight_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", num_hidden_layers=1)
    _edit(folder / "config.json", {"num_hidden_layers": 2})
    with pytest.raises(UserError, match=r"blk\.1\.attn_norm"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    _edit(folder / "config.json", {"num_hidden_layers": 1})
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="too large for float16"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.slow
def test_greedy_continuation_of_the_packaged_model_equals_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ssd_lite.engines.llama_context import LlamaContext, LlamaModel
    from ssd_lite.engines.tokenizer import ChatTokenizer

    folder = packaged_folder()
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    tokenizer, model = ChatTokenizer.load(folder), AutoModelForCausalLM.from_pretrained(folder)
    gguf = LlamaModel(tmp_path / "m.gguf")
    questions = [
        "Add two numbers in Python.",
        "Name three colours.",
        "What is 12 * 12?",
        "Say hello in French.",
        "Sort a list.",
    ]
    for question in questions:
        _, ids = tokenizer.render([{"role": "user", "content": question}])
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=64,
                min_new_tokens=64,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=2,
            )
        context = LlamaContext(gguf, sequences=1, length=len(ids) + 64)
        logits, ours = context.prefill(0, ids), []
        for position in range(len(ids), len(ids) + 64):
            ours.append(int(logits.argmax()))
            logits = context.step([(0, ours[-1], position)])[0]
        context.close()
        assert ours == out[0, len(ids) :].tolist(), question
    gguf.close()
    assert ModelFolder(folder).parameter_count == 134515008
