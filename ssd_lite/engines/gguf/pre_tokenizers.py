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
# Words end where lower case turns into upper case: GPT-4o (Phi-4-mini) with contractions, Tekken (Mistral) without.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = "|".join(word + _CONTRACTION for word in _CASED) + r"|\p{N}{1,3}" + _CASED_REST
_TEKKEN = "|".join(_CASED) + r"|\p{N}" + _CASED_REST

Cut = tuple[tuple[str, ...], bool]
# llama.cpp's name → (steps, whether a word that is a token skips the merges). The first name of a cut is written.
CUTS: dict[str, Cut] = {
    "llama-bpe": ((_LLAMA3, "bytes"), True),
    "dbrx": ((_LLAMA3, "bytes"), False),
    "qwen2": ((_QWEN2, "bytes"), False),
    "gpt-4o": ((_GPT4O, "bytes"), False),
    "tekken": ((_TEKKEN, "bytes"), True),
    "smollm": (("digits", "gpt2"), False),
    "gpt-2": (("gpt2",), False),
}
_SAME_CUT = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "llama4": "gpt-4o",
    "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
}


# Cuts whose expression llama.cpp replaces by one that leaves combining marks out of words: Thai, Hindi and vocalised
# Arabic may fall into other tokens, whoever wrote the file (seen with GPT-4o's and Tekken's published vocabularies in
# llama-cpp-python 0.3.36).
WITHOUT_MARKS = frozenset({"gpt-4o", "tekken"})


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
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False}:
            return (expression,)
        # "What does not match is removed" cuts alike, because every text is matched by these expressions throughout.
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Removed", "invert": True}:
            return (expression,)
    return ("unknown",)
