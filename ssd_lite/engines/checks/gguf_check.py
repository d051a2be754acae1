"""A written GGUF's vocabulary against the model folder's tokenizer: same ids for hard texts, same end tokens."""

from __future__ import annotations

from pathlib import Path

from ssd_lite.engines.gguf.pre_tokenizers import WITHOUT_MARKS
from ssd_lite.engines.gguf.quantise import Vocabulary
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError

# Digits, contractions, white space, other scripts, emoji with joiners: where ways to cut a text differ. All in NFC.
PROBES = (
    "def f(x):\n    return [i ** 2 for i in range(10)]\n\n\n\tif x == 12345:\r\n        pass",
    "I've can't WE'LL they'd 3 33 333 3333 3.14159 1e-5 ½ ٣٤٥",
    "  leading,   inner   and trailing   \n \n\n   \t\t x",
    "naïve café 北京 привет 👩‍👩‍👧 🚀🚀 ''''```\"\"\"!!!!??",
)
# Combining marks inside words.
MARKS = "สวัสดี नमस्ते दुनिया مَرْحَبًا"


def check_vocabulary(gguf: Path, folder: Path) -> None:
    """Raise UserError if llama.cpp tokenises a probe otherwise than tokenizer.json, or would never stop."""
    tokenizer = ChatTokenizer.load(folder)
    view = Vocabulary(gguf)
    try:
        ends = "".join(tokenizer.decode([token]) for token in tokenizer.end_ids)
        lead = _lead(tokenizer)
        marks = () if view.value("tokenizer.ggml.pre") in WITHOUT_MARKS else (MARKS,)
        for text in (*PROBES, *marks, ends):
            text = lead + text
            if view.tokenise(text, parse_special=True) != tokenizer.encode(text):
                raise UserError(
                    f"llama.cpp tokenises {text[:40]!r} otherwise than the model's tokenizer.json.",
                    where=str(gguf),
                    next_step="Do not use this file; convert with llama.cpp's own convert_hf_to_gguf.py.",
                )
        deaf = [tokenizer.decode([token]) for token in tokenizer.end_ids if not view.is_end(token)]
        if len(deaf) == len(tokenizer.end_ids):
            raise UserError(f"would not stop at {', '.join(map(repr, deaf))}.", where=str(gguf))
    finally:
        view.close()


def _lead(tokenizer: ChatTokenizer) -> str:
    """A control token to put before texts where only the very beginning gets a space (Metaspace "first"), else "".

    llama.cpp knows no such scheme. With a chat template every prompt begins with a control token, and the file is made
    for what follows one.
    """
    end = tokenizer.decode([tokenizer.end_ids[0]])
    at_the_beginning, behind = tokenizer.encode("a"), tokenizer.encode(end + "a")[1:]
    return end if tokenizer.chat_template is not None and at_the_beginning != behind else ""
