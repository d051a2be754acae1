"""tokenizer.json, tokenizer_config.json and generation_config.json from the vocabulary inside a GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_lite.atomic import write_json
from ssd_lite.engines.gguf.header import TOKEN_ID_KEYS
from ssd_lite.engines.gguf.pre_tokenizers import cut_of, pre_tokenizer_json
from ssd_lite.engines.gguf.sentencepiece import CONTROL, UNUSED, USER_DEFINED
from ssd_lite.errors import UserError

# Control tokens that end a reply wherever they stand in a vocabulary; llama.cpp holds the same opinion.
_END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")
_KEY = "tokenizer.ggml."


def write_tokenizer(fields: Mapping[str, Any], folder: Path, context_length: int, where: str) -> None:
    """Write the three tokenizer files of a GGUF's metadata into `folder`. Raises UserError for an unknown tokenizer."""
    if fields.get(_KEY + "model") != "gpt2":
        raise _unknown(f"the tokenizer kind {fields.get(_KEY + 'model')!r}", where)
    pre = str(fields.get(_KEY + "pre", "default"))
    cut = cut_of(pre)
    if cut is None:
        raise _unknown(f"the pre-tokenizer {pre!r}", where)
    tokens, types = fields[_KEY + "tokens"], fields[_KEY + "token_type"]
    named = {key: f"{_KEY}{long}_token_id" for key, long in TOKEN_ID_KEYS.items()}
    special = {key: int(fields[field]) for key, field in named.items() if field in fields}
    if "eos" not in special:
        raise UserError("the GGUF names no end token (eos).", where=where)
    # Llama 3's tokenizer adds bos unless told otherwise; every other byte-level BPE does not.
    add_bos = bool(fields.get(_KEY + "add_bos_token", pre in ("llama-bpe", "llama3", "llama-v3"))) and "bos" in special
    body = _tokenizer_json(tokens, types, list(fields[_KEY + "merges"]), cut)
    if pre in ("qwen2", "deepseek-r1-qwen"):
        body["normalizer"] = {"type": "NFC"}
    if add_bos:
        body["post_processor"] = _bos_processor(tokens[special["bos"]], special["bos"])
    # One line: 50,000 merges indented would be thrice as large.
    (folder / "tokenizer.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", _settings(fields, tokens, special, add_bos, context_length))
    write_json(folder / "generation_config.json", _generation(tokens, types, special))


def _unknown(what: str, where: str) -> UserError:
    return UserError(
        f"the GGUF has {what}, which is not known here.",
        where=where,
        next_step="Name the model's Hugging Face folder or Hub id instead.",
    )


def _tokenizer_json(
    tokens: list[str], types: list[int], merges: list[str], cut: tuple[tuple[str, ...], bool]
) -> dict[str, Any]:
    steps, skips_merges = cut
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocab = {token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": skips_merges,
        "vocab": vocab,
        "merges": merges,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_json(steps),
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def _bos_processor(bos: str, bos_id: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, first, b],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _settings(
    fields: Mapping[str, Any], tokens: list[str], special: dict[str, int], add_bos: bool, context_length: int
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
    }
    settings |= {f"{key}_token": tokens[special[key]] for key in ("bos", "eos", "pad", "unk") if key in special}
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return settings


def _generation(tokens: list[str], types: list[int], special: dict[str, int]) -> dict[str, Any]:
    ends = [special[key] for key in ("eos", "eot", "eom") if key in special]
    by_text = {token: index for index, token in enumerate(tokens) if types[index] == CONTROL}
    ends += [by_text[text] for text in _END_TEXTS if text in by_text]
    value: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))}
    value |= {f"{key}_token_id": special[key] for key in ("bos", "pad") if key in special}
    return value
