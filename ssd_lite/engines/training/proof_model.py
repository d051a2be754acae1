"""Small models of random weights, with a tokenizer, on which engines are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_proof_model(folder: Path, family: str) -> None:
    """A model of random weights in float16 with a tokenizer, as a plain folder: 2 layers, width 128, 512 tokens."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(7)
    model: Any
    if family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms off one and weights large enough that every part shows in the gradients.
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.05) if "norm" in name else weight.normal_(0.0, 0.05)
    model.to(torch.float16).save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, 512)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w3")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="w3",
    )
    tokenizer.save_pretrained(folder)
