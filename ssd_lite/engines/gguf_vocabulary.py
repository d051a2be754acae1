"""The vocabulary of a model folder as GGUF wants it: tokens, types, merges, special ids, end tokens, chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_lite.engines.gguf_names import unsupported
from ssd_lite.engines.model_folder import read_json
from ssd_lite.engines.pre_tokenizers import llama_cpp_name
from ssd_lite.errors import UserError

# GGUF's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary. `special` has the ids of bos, eos, eot, pad, unk that there are.

    `end_ids` are all tokens that end a reply, the most usual first; `pre` is llama.cpp's pre-tokenizer name.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    special: dict[str, int]
    end_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def read_vocabulary(folder: Path, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a model folder. Raises UserError for all but the known byte-level BPEs."""
    tokenizer = read_json(folder / "tokenizer.json")
    settings = _optional(folder / "tokenizer_config.json")
    _check_model(tokenizer, folder)
    pre = llama_cpp_name(tokenizer)
    if pre is None:
        raise unsupported("the pre-tokenizer of its tokenizer.json", str(folder))
    tokens, types = _tokens(tokenizer, int(config["vocab_size"]), folder)
    ids = {token: index for index, token in enumerate(tokens)}
    special = {
        key: ids[text]
        for key in ("bos", "eos", "pad", "unk")
        if (text := _text(settings.get(f"{key}_token"))) is not None and text in ids
    }
    end_ids = _end_ids(special, _optional(folder / "generation_config.json"), config)
    if not end_ids:
        raise UserError(
            "names no end token (eos).", where=str(folder), next_step="Add eos_token to tokenizer_config.json."
        )
    special["eos"] = end_ids[0]
    if len(end_ids) > 1:
        special["eot"] = end_ids[1]
    add_bos, add_eos = _added(tokenizer, settings, special, tokens)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    template = chat_template(folder, settings)
    return Vocabulary(tokens, types, merges, pre, special, end_ids, add_bos, add_eos, template)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _check_model(tokenizer: dict[str, Any], folder: Path) -> None:
    model = tokenizer.get("model") or {}
    odd = [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback") if model.get(key)
    ]
    if model.get("type") != "BPE" or odd:
        kind = f"BPE with {', '.join(odd)}" if odd else str(model.get("type"))
        raise unsupported(f"a tokenizer of the kind {kind}", str(folder))
    normaliser = tokenizer.get("normalizer")
    # llama.cpp does not normalise; text that is in NFC already, as nearly all is, is tokenised alike.
    if normaliser not in (None, {"type": "NFC"}):
        raise unsupported(f"a tokenizer with the normalizer {normaliser.get('type')}", str(folder))


def _tokens(tokenizer: dict[str, Any], vocab_size: int, folder: Path) -> tuple[list[str], list[int]]:
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = {int(entry["id"]): entry for entry in tokenizer.get("added_tokens", [])}
    highest = max([*vocab.values(), *added])
    if highest >= vocab_size:
        raise UserError(
            f"its tokenizer has the id {highest}, its vocab_size is {vocab_size}.",
            where=str(folder),
            next_step="Use the tokenizer that belongs to the weights.",
        )
    # Ids without a token pad the embedding to a round size; llama.cpp's own converter gives them these names.
    tokens, types = [f"[PAD{index}]" for index in range(vocab_size)], [UNUSED] * vocab_size
    for text, index in vocab.items():
        tokens[index], types[index] = text, NORMAL
    for index, entry in added.items():
        looks_special = entry["content"].startswith("<|") and entry["content"].endswith("|>")
        tokens[index] = entry["content"]
        types[index] = CONTROL if entry.get("special") or looks_special else USER_DEFINED
    return tokens, types


def _end_ids(special: dict[str, int], generation: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    found: list[int] = [special["eos"]] if "eos" in special else []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]
    return tuple(dict.fromkeys(found))


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
