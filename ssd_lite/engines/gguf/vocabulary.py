"""A model folder's vocabulary as GGUF wants it: tokens, types, merges or scores, special ids, ends, chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.engines.gguf.architecture import unsupported
from ssd_lite.engines.gguf.pre_tokenizers import llama_cpp_name
from ssd_lite.engines.gguf.sentencepiece import (
    ADDED_SCORE,
    CONTROL,
    NORMAL,
    PADDING_SCORE,
    SPACE,
    UNUSED,
    USER_DEFINED,
    check_sentencepiece,
    is_sentencepiece,
    pieces_of,
    puts_space_first,
)
from ssd_lite.engines.weights.model_folder import read_json
from ssd_lite.errors import UserError

# Added tokens that some models do not call special though they are never text.
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.S)
# End tokens that llama.cpp knows by their texts.
_KNOWN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary of the `kind` "gpt2" (byte-level BPE, with `merges`) or "llama" (SentencePiece, with `scores`).

    `special` has the ids of bos, eos, eot, eom, pad, unk that there are. `end_ids` are all tokens that end a reply, the
    most usual first; `pre` is llama.cpp's pre-tokenizer name.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    pre: str
    special: dict[str, int]
    end_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None


def read_vocabulary(folder: Path, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a model folder. Raises UserError for what llama.cpp would tokenise otherwise."""
    tokenizer = read_json(folder / "tokenizer.json")
    settings = _optional(folder / "tokenizer_config.json")
    template = chat_template(folder, settings)
    size = int(config["vocab_size"])
    _check_size(tokenizer, size, folder)
    if is_sentencepiece(tokenizer):
        check_sentencepiece(tokenizer, folder)
        tokens, scores, types = _sentencepiece(tokenizer, size, folder)
        kind, pre, merges, space_first = "llama", "default", [], puts_space_first(tokenizer, template is not None)
    else:
        pre = _byte_level_cut(tokenizer, folder)
        tokens, types = _byte_level(tokenizer, size)
        kind, merges, scores, space_first = "gpt2", _merges(tokenizer), [], False
    special, end_ids = _special(tokens, settings, _optional(folder / "generation_config.json"), config, folder)
    add_bos, add_eos = _added(tokenizer, settings, special, tokens)
    return Vocabulary(
        kind, tokens, types, merges, scores, pre, special, end_ids, add_bos, add_eos, space_first, template
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _check_size(tokenizer: dict[str, Any], size: int, folder: Path) -> None:
    # An added token beyond the weights cannot be used (Gemma 3 1B names an image token); a vocabulary beyond is wrong.
    vocab = (tokenizer.get("model") or {}).get("vocab")
    highest = max(vocab.values(), default=0) if isinstance(vocab, dict) else 0
    if highest >= size:
        raise UserError(
            f"its tokenizer has the id {highest}, its vocab_size is {size}.",
            where=str(folder),
            next_step="Use the tokenizer that belongs to the weights.",
        )


def _byte_level_cut(tokenizer: dict[str, Any], folder: Path) -> str:
    model = tokenizer.get("model") or {}
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") != "BPE" or odd:
        kind = f"BPE with {', '.join(odd)}" if odd else str(model.get("type"))
        raise unsupported(f"a tokenizer of the kind {kind}", str(folder))
    normaliser = tokenizer.get("normalizer")
    # llama.cpp does not normalise; text that is in NFC already, as nearly all is, is tokenised alike.
    if normaliser not in (None, {"type": "NFC"}):
        raise unsupported(f"a tokenizer with the normalizer {normaliser.get('type')}", str(folder))
    pre = llama_cpp_name(tokenizer)
    if pre is None:
        raise unsupported("the pre-tokenizer of its tokenizer.json", str(folder))
    return pre


def _added_tokens(tokenizer: dict[str, Any], size: int) -> dict[int, tuple[str, int]]:
    """Id → (text, type) of the added tokens that the weights have."""
    added: dict[int, tuple[str, int]] = {}
    for entry in tokenizer.get("added_tokens", []):
        text, index = entry["content"], int(entry["id"])
        control = entry.get("special") or _LOOKS_SPECIAL.fullmatch(text)
        if index < size:
            added[index] = (text, CONTROL) if control else (text.replace(SPACE, " "), USER_DEFINED)
    return added


def _byte_level(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    # Ids without a token pad the embedding to a round size; llama.cpp's own converter gives them these names.
    tokens, types = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = text, NORMAL
    for index, (text, kind) in _added_tokens(tokenizer, size).items():
        tokens[index], types[index] = text, kind
    return tokens, types


def _sentencepiece(tokenizer: dict[str, Any], size: int, folder: Path) -> tuple[list[str], list[float], list[int]]:
    tokens, types = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    scores = [PADDING_SCORE] * size
    for index, (text, score, kind) in pieces_of(tokenizer, folder).items():
        if index < size:
            tokens[index], scores[index], types[index] = text, score, kind
    for index, (text, kind) in _added_tokens(tokenizer, size).items():
        tokens[index], scores[index], types[index] = text, ADDED_SCORE, kind
    return tokens, scores, types


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    return [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]


def _special(
    tokens: list[str], settings: dict[str, Any], generation: dict[str, Any], config: dict[str, Any], folder: Path
) -> tuple[dict[str, int], tuple[int, ...]]:
    ids = {token: index for index, token in enumerate(tokens)}
    special = {
        key: ids[text]
        for key in ("bos", "eos", "pad", "unk")
        if (text := _text(settings.get(f"{key}_token"))) is not None and text in ids
    }
    for key in ("bos", "pad", "unk"):
        index = config.get(f"{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            special.setdefault(key, index)
    found: list[int] = [special["eos"]] if "eos" in special else []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]
    ends = tuple(index for index in dict.fromkeys(found) if 0 <= index < len(tokens))
    if not ends:
        raise UserError(
            "names no end token (eos).", where=str(folder), next_step="Add eos_token to tokenizer_config.json."
        )
    special["eos"] = ends[0]
    # A GGUF has room for three; those that llama.cpp would not know by their texts come first.
    others = sorted(ends[1:], key=lambda index: tokens[index] in _KNOWN_ENDS)
    special |= dict(zip(("eot", "eom"), others, strict=False))
    return special, ends


def _added(
    tokenizer: dict[str, Any], settings: dict[str, Any], special: dict[str, int], tokens: list[str]
) -> tuple[bool, bool]:
    """Whether plain text gets bos in front and eos behind: what the post-processor does, else what the settings say."""
    template = _template_processor(tokenizer.get("post_processor"))
    if template is None:
        return bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token"))
    pieces = [piece.get("SpecialToken", {}).get("id") for piece in template.get("single", [])]
    bos, eos = (tokens[special[key]] if key in special else None for key in ("bos", "eos"))
    return bos is not None and pieces[:1] == [bos], eos is not None and pieces[-1:] == [eos]


def _template_processor(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if not value:
        return None
    parts = value.get("processors", []) if value.get("type") == "Sequence" else [value]
    return next((part for part in parts if part.get("type") == "TemplateProcessing"), None)


def chat_template(folder: Path, settings: dict[str, Any] | None = None) -> str | None:
    """The jinja chat template of a model folder: chat_template.jinja, else the one in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = _optional(folder / "tokenizer_config.json") if settings is None else settings
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
