"""How text is cut before byte-level BPE: tokenizer.json's `pre_tokenizer` ↔ llama.cpp's pre-tokenizer names.

The JSON itself is compared, not a hash of the token ids of a probe text: ids depend on the vocabulary, so one added
token changes the hash of a tokenizer that still cuts the same way, and a new model with a known cut has no hash yet.
What llama.cpp makes of the name is checked on the written file (`gguf_check`).
"""

from __future__ import annotations

from typing import Any

# Steps: "digits" = each digit alone; "gpt2" = byte level with GPT-2's expression; "bytes" = byte level alone; any other
# text is the expression of a Split step with the behaviour Isolated.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST

Cut = tuple[tuple[str, ...], bool]
# llama.cpp's name → (steps, whether a word that is a token skips the merges). The first name of a cut is written.
CUTS: dict[str, Cut] = {
    "llama-bpe": ((_LLAMA3, "bytes"), True),
    "dbrx": ((_LLAMA3, "bytes"), False),
    "qwen2": ((_QWEN2, "bytes"), False),
    "smollm": (("digits", "gpt2"), False),
    "gpt-2": (("gpt2",), False),
}
_SAME_CUT = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
}


def llama_cpp_name(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for the cut of a tokenizer.json, or None if it has none that is known here."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    skips = bool(tokenizer["model"].get("ignore_merges", False))
    return next((name for name, cut in CUTS.items() if cut == (steps, skips)), None)


def cut_of(name: str) -> Cut | None:
    """Steps and merge skipping of llama.cpp's pre-tokenizer `name`, or None if it is not known here."""
    return CUTS.get(_SAME_CUT.get(name, name))


def pre_tokenizer_json(steps: tuple[str, ...]) -> dict[str, Any]:
    """The `pre_tokenizer` of tokenizer.json for these steps."""
    parts = [_step_json(step) for step in steps]
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _step_json(step: str) -> dict[str, Any]:
    if step == "digits":
        return {"type": "Digits", "individual_digits": True}
    if step in ("bytes", "gpt2"):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step == "gpt2"}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def _steps(value: dict[str, Any] | None) -> tuple[str, ...]:
    match value:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return tuple(step for part in parts for step in _steps(part))
        case {"type": "Digits", "individual_digits": True}:
            return ("digits",)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return ("gpt2" if (value or {}).get("use_regex", True) else "bytes",)
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated"}:
            return ("unknown" if (value or {}).get("invert") else expression,)
    return ("unknown",)
