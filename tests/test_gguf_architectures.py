"""Every architecture as GGUF: equal to llama.cpp's own converter, and llama.cpp computes what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_gguf import write_gguf
from reference_converter import convert
from tiny_architectures import CASES, SLOW_CASES, save_case
from tiny_models import hf_logits, llama_logits
from tiny_tokenizers import NASTY

from ssd_lite.engines.gguf.quantise import Vocabulary
from ssd_lite.engines.gguf.read import GgufFile, open_gguf
from ssd_lite.engines.tokenizer import ChatTokenizer

pytest.importorskip("llama_cpp")
TYPES = ("f32", "f16", "bf16")
# Reading 32,000 tokens and more takes seconds: those files are compared in one type.
LARGE = {"smollm2": "bf16", "mistral": "f16", "gemma3": "bf16", "gemma3-linear": "f32"}
PAIRS = [(name, t) for name in CASES for t in TYPES if LARGE.get(name, t) == t]
# Names and labels that llama.cpp's converter guesses from the folder's name and the model card, and counts.
_GUESSED = ("general.name", "general.size_label", "general.basename", "general.finetune", "general.version")
_COUNTS = ("GGUF.kv_count", "GGUF.tensor_count")
# End tokens two and three, which the converter leaves out.
_MORE = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# What llama.cpp takes for granted where a file is silent, by kind of tokenizer: each writes some of it.
_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix")
_DEFAULTS = {"gpt2": (False, False, False, False), "llama": (True, False, False, True)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models' folders by case."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_case(root / name, case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CASE-TYPE.gguf of llama.cpp's own converter."""
    out = tmp_path_factory.mktemp("reference")
    convert([(folders[name], out / f"{name}-{t}.gguf", t, CASES[name].pre) for name, t in PAIRS])
    return out


def _bytes_of(file: GgufFile) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), np.ascontiguousarray(tensor.data).tobytes())
        for name, tensor in file.tensors.items()
    }


def _compared(fields: dict[str, Any]) -> dict[str, Any]:
    defaults = zip(_FLAGS, _DEFAULTS[fields["tokenizer.ggml.model"]], strict=True)
    silent = {f"tokenizer.ggml.{flag}": value for flag, value in defaults}
    left = {key: value for key, value in fields.items() if key not in (*_GUESSED, *_COUNTS, *_MORE)}
    return {key: value for key, value in left.items() if key not in silent or value != silent[key]}


def _assert_equal_files(ours: GgufFile, theirs: GgufFile) -> None:
    mine, wanted = _compared(ours.fields), _compared(theirs.fields)
    keys = {*mine, *wanted}
    assert {key: (mine.get(key), wanted.get(key)) for key in keys if mine.get(key) != wanted.get(key)} == {}
    assert _bytes_of(ours) == _bytes_of(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gguf_type"), PAIRS)
def test_equal_to_llama_cpps_own_converter_in_every_tensor_and_setting(
    name: str, gguf_type: str, folders: dict[str, Path], reference: Path, tmp_path: Path
) -> None:
    write_gguf(folders[name], tmp_path / "m.gguf", gguf_type)
    _assert_equal_files(open_gguf(tmp_path / "m.gguf"), open_gguf(reference / f"{name}-{gguf_type}.gguf"))


def _assert_llama_cpp_agrees(folder: Path, gguf: Path, hard: tuple[str, ...] = NASTY) -> None:
    tokenizer, view = ChatTokenizer.load(folder), Vocabulary(gguf)
    texts = {text: tokenizer.encode(text) for text in hard}
    seen = {text: view.tokenise(text, parse_special=True) for text in texts}
    ends = [view.is_end(token) for token in tokenizer.end_ids]
    view.close()
    assert {text: ids for text, ids in seen.items() if ids != texts[text]} == {}
    assert all(ends)
    ids = [token for text in hard for token in texts[text]][:80]
    ours, theirs = llama_logits(gguf, ids), hf_logits(folder, ids)
    # llama.cpp keeps keys and values in float16: about three digits.
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)
    assert ours.argmax() == theirs.argmax()


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_and_tokenises_as_the_model_folder_says(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    write_gguf(folders[name], tmp_path / "m.gguf", "f32")
    _assert_llama_cpp_agrees(folders[name], tmp_path / "m.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_published_vocabularies_of_full_size(name: str, tmp_path: Path) -> None:
    folder = save_case(tmp_path / "model", SLOW_CASES[name])
    convert([(folder, tmp_path / "theirs.gguf", "bf16", SLOW_CASES[name].pre)])
    write_gguf(folder, tmp_path / "m.gguf", "bf16")
    _assert_equal_files(open_gguf(tmp_path / "m.gguf"), open_gguf(tmp_path / "theirs.gguf"))
    write_gguf(folder, tmp_path / "m32.gguf", "f32")
    # Qwen's vocabulary has </s> as plain text, which llama.cpp takes for an end token.
    _assert_llama_cpp_agrees(folder, tmp_path / "m32.gguf", tuple(text for text in NASTY if "</s>" not in text))
