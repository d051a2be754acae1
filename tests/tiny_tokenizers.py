"""Tokenizers for tests: small ones trained on the starter problems, and real ones from packages' files."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from ssd_lite.engines.gguf.pre_tokenizers import CUTS, pre_tokenizer_json
from ssd_lite.engines.gguf.sentencepiece import NORMAL, read_pieces

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Numbers, contractions, cases, white space, scripts, byte fallback, joined emoji, control and added tokens. All in NFC,
# because llama.cpp does not normalise.
NASTY = (
    "def f(x):\n    return [i ** 2 for i in range(10)]\n\n\n\tif x == 12345:\r\n        pass",
    "I've can't WE'LL they'd 3 33 333 3333 3.14159 1e-5 ½ ٣٤٥",
    "  leading,   inner   and trailing   \n \n\n   \t\t x ",
    "naïve café 北京 привет สวัสดี 👩‍👩‍👧 🚀🚀 ''''```\"\"\"!!!!??",
    "HTTPServer camelCase snake_case SCREAMING ǅ ʰ x\u0301",
    "a",
    " ",
    "\n",
    "x/y//z/\n\n/ end.",
    "<|im_start|>user\n Hello <|im_end|>\n",
    "</s>text</s> text",
    '<tool_call> {"a": 1}</tool_call>',
    "\x00\x01 control \x7f ￿",
    "        eight\t\ttabs",
)


@cache
def corpus() -> str:
    """The starter problems' prompts and solutions."""
    folder = resources.files("ssd_lite.problems").joinpath("data")
    lines = [
        json.loads(line)
        for name in ("starter_train.jsonl", "starter_evaluate.jsonl")
        for line in folder.joinpath(name).read_text(encoding="utf-8").splitlines()
    ]
    return "\n".join(f"{line['prompt']}\n{line.get('golden', '')}" for line in lines)


def added(texts: Sequence[str], first: int, *, special: bool = True) -> list[dict[str, Any]]:
    """Entries of `added_tokens` with ids from `first` on."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return [{"id": first + i, "content": text, **flags} for i, text in enumerate(texts)]


def write_tokenizer(
    folder: Path,
    value: dict[str, Any],
    *,
    bos: str | None,
    eos: str,
    kind: str = "PreTrainedTokenizerFast",
    ends: Sequence[str] = (),
    **settings: Any,
) -> None:
    """tokenizer.json, tokenizer_config.json with a chat template, and generation_config.json with several ends."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {**value["model"]["vocab"], **{entry["content"]: entry["id"] for entry in value["added_tokens"]}}
    decoder = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in value["added_tokens"]}
    config = {"tokenizer_class": kind, "eos_token": eos, "chat_template": TEMPLATE, "added_tokens_decoder": decoder}
    config |= ({"bos_token": bos} if bos else {}) | settings
    (folder / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    end_ids = [ids[text] for text in (eos, *ends)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_ids}), encoding="utf-8")


def add_bos(token: str, index: int) -> dict[str, Any]:
    """A post-processor that puts bos in front."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, first, second],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def byte_level(cut: str, specials: Sequence[str], *, extra: Sequence[str] = (), size: int = 700) -> dict[str, Any]:
    """A byte-level BPE trained on the corpus with one of llama.cpp's cuts; `extra` are added tokens that are text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    steps, skips = CUTS[cut]
    shape = {"added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None, "version": "1.0"}
    empty = {**shape, "pre_tokenizer": pre_tokenizer_json(steps), "model": {"type": "BPE", "vocab": {}, "merges": []}}
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    tokenizer.model = models.BPE()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus().splitlines(keepends=True), trainer)
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    value["model"]["ignore_merges"] = skips
    value["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    first = max(value["model"]["vocab"].values()) + 1
    value["added_tokens"] = added(specials, first) + added(extra, first + len(specials), special=False)
    return value


def from_ranks(
    ranks: Sequence[bytes], cut: str, specials: Sequence[str], *, specials_first: bool = False
) -> dict[str, Any]:
    """A byte-level BPE from tokens in order of merging, as tiktoken's and Tekken's files have them."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = dict(zip(_byte_order(), _byte_letters(), strict=True))
    assert set(letters.values()) == set(ByteLevel.alphabet())
    order = {token: rank for rank, token in enumerate(ranks)}

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [[written(a), written(b)] for token in ranks if len(token) > 1 for a, b in [_halves(token, order)]]
    steps, skips = CUTS[cut]
    first = len(specials) if specials_first else 0
    vocab = {written(token): first + rank for rank, token in enumerate(ranks)}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": skips,
        "vocab": ({text: index for index, text in enumerate(specials)} if specials_first else {}) | vocab,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(specials, 0 if specials_first else len(ranks)),
        "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
        "pre_tokenizer": pre_tokenizer_json(steps),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": model,
    }


def _byte_order() -> list[int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [byte for byte in range(256) if byte not in printable]


def _byte_letters() -> list[str]:
    return [chr(byte) for byte in _byte_order()[:188]] + [chr(256 + i) for i in range(68)]


def _halves(token: bytes, order: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one last."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [order.get(a + b, len(order)) for a, b in pairwise(parts)]
        at = ranks.index(min(ranks))
        assert ranks[at] < order[token], token
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def tiktoken_ranks(file: Path) -> list[bytes]:
    """The tokens of a .tiktoken file in order."""
    lines = [line.split() for line in file.read_bytes().splitlines() if line]
    return [base64.b64decode(token) for token, _ in sorted(lines, key=lambda pair: int(pair[1]))]


@cache
def _merges_of(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The pieces' ids, and every pair that makes a piece, best score first."""
    pieces = read_pieces(file)
    vocab = {text: index for index, (text, _, _) in enumerate(pieces)}
    merges: list[tuple[float, tuple[str, str]]] = []
    for text, score, kind in pieces:
        if kind == NORMAL:
            halves = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab]
            merges += [(-score, pair) for pair in sorted(halves, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    merges.sort(key=lambda merge: merge[0])
    return vocab, [pair for _, pair in merges]


def from_pieces(file: Path, *, specials: Sequence[str], spaces: str) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece model. A space goes "first", after control tokens too ("legacy"), or "none"."""
    vocab, merges = _merges_of(file)
    to_space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    normaliser = {"legacy": {"type": "Sequence", "normalizers": [prepend, to_space]}, "none": to_space}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    from_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [from_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *(strip if spaces != "none" else [])]
    known = [entry for text in specials if text in vocab for entry in added([text], vocab[text])]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": known + added([text for text in specials if text not in vocab], len(vocab)),
        "normalizer": normaliser.get(spaces),
        "pre_tokenizer": metaspace if spaces == "first" else None,
        "post_processor": add_bos("<s>", vocab["<s>"]),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(vocab),
            "merges": [list(pair) for pair in merges],
        },
    }
