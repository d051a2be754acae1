"""Quantised files have the type that was asked for, open, and appear whole or not at all."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from plain_gguf import write_gguf
from tiny_models import hf_logits, llama_logits, save_tiny

from ssd_lite.engines.checks.gguf_check import check_vocabulary
from ssd_lite.engines.gguf.quantise import Vocabulary, quantise
from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.engines.gguf.set import write_gguf_set
from ssd_lite.engines.gguf.types import FILE_TYPES
from ssd_lite.errors import UserError
from ssd_lite.stages.export import TYPES

pytest.importorskip("llama_cpp")
# 256 columns: what K-quants need.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
MOST_TENSORS = {"q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K", "q4_0": "Q4_0", "q2_k": "Q2_K"}


def test_every_type_of_a_recipe_is_known() -> None:
    assert set(FILE_TYPES) == set(TYPES)


def test_every_type_that_llama_cpp_writes_is_known(tmp_path: Path) -> None:
    from llama_cpp import llama_cpp

    theirs = {name: number for name, number in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    ours = {number for number, _ in FILE_TYPES.values()}
    assert {name for name, number in theirs.items() if number not in ours} == {
        "LLAMA_FTYPE_GUESSED",
        "LLAMA_FTYPE_MOSTLY_NVFP4",  # its quantiser refuses this one: "invalid output file type"
    }
    write_gguf(save_tiny(tmp_path / "model", num_hidden_layers=1), tmp_path / "m.gguf", "f16")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_NVFP4
    status = llama_cpp.llama_model_quantize(
        str(tmp_path / "m.gguf").encode(), str(tmp_path / "n.gguf").encode(), ctypes.byref(parameters)
    )
    assert status != 0


def test_types_in_one_pass(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen3", **WIDE)
    paths = {name: tmp_path / "out" / f"m-{name}.gguf" for name in MOST_TENSORS}
    (tmp_path / "out").mkdir()
    assert set(write_gguf_set(folder, paths)) == set(paths)
    assert sorted(tmp_path.glob("out/*")) == sorted(paths.values())
    for name, path in paths.items():
        counts = open_gguf(path).type_counts()
        counts.pop("F32")
        assert max(counts, key=lambda kind: counts[kind]) == MOST_TENSORS[name], counts
        view = Vocabulary(path)
        assert view.value("general.file_type") == str(FILE_TYPES[name][0])
        view.close()
        check_vocabulary(path, folder)
    ids = list(range(100, 140))
    theirs, ours = hf_logits(folder, ids), llama_logits(paths["q8_0"], ids)
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)
    assert write_gguf_set(folder, paths) == {}


def test_a_failure_is_a_user_error_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(UserError, match="cannot quantise it to q8_0"):
        quantise(tmp_path / "no.gguf", tmp_path / "out.gguf", "q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_a_vocabulary_that_is_read_otherwise_is_found(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    check_vocabulary(tmp_path / "m.gguf", folder)
    data = (tmp_path / "m.gguf").read_bytes()
    assert data.count(b"smollm") == 1
    # Same length, another cut: digits are no longer apart.
    (tmp_path / "m.gguf").write_bytes(data.replace(b"smollm", b"falcon"))
    with pytest.raises(UserError, match="otherwise than the model"):
        check_vocabulary(tmp_path / "m.gguf", folder)
