"""The importance matrix is the sum of squares that torch computes, and llama.cpp's format is kept both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_gguf import write_gguf
from tiny_models import save_tiny

from ssd_lite.engines.gguf import imatrix as module
from ssd_lite.engines.gguf.imatrix import compute_imatrix
from ssd_lite.engines.gguf.imatrix_file import read_imatrix, write_imatrix
from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.errors import Stopped, UserError

pytest.importorskip("llama_cpp")
TEXTS = [list(range(100, 160)), [7, 9, 900], list(range(300, 900))]
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _sums_by_torch(folder: Path, texts: list[list[int]]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        def seen(layer: Any, inputs: Any) -> None:
            squares = inputs[0][0].detach().double().square().sum(dim=0).numpy()
            sums[name] = sums.get(name, 0) + squares

        return seen

    for index, layer in enumerate(model.model.layers):
        for long, short in MODULES.items():
            layer.get_submodule(long).register_forward_pre_hook(hook(f"blk.{index}.{short}.weight"))
    with torch.no_grad():
        for ids in texts:
            model(torch.tensor([ids]))
    return sums


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_it_is_the_mean_square_that_torch_computes(kind: str, tmp_path: Path) -> None:
    # Larger weights would let float16 keys and values, which llama.cpp caches, move what follows by more.
    folder = save_tiny(tmp_path / "model", kind, initializer_range=0.1, max_position_embeddings=1024)
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    seen: list[int] = []
    found = compute_imatrix(
        tmp_path / "m.gguf", TEXTS, tmp_path / "i.gguf", dataset="three texts", advance=seen.append, threads=1
    )
    sums, tokens = _sums_by_torch(folder, TEXTS), sum(map(len, TEXTS))
    assert sum(seen) == tokens == 663
    assert set(found.columns) == set(sums)
    for name, expected in sums.items():
        assert np.allclose(found.columns[name], expected / tokens, rtol=2e-3), name
    assert (found.dataset, found.chunks, found.file) == ("three texts", 3, "i.gguf")


def test_a_long_text_is_cut_and_the_next_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model", initializer_range=0.1)
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    monkeypatch.setattr(module, "LONGEST", 40)
    first = compute_imatrix(tmp_path / "m.gguf", TEXTS, tmp_path / "i.gguf", dataset="", threads=1)
    second = compute_imatrix(
        tmp_path / "m.gguf", [text[:40] for text in reversed(TEXTS)], tmp_path / "j.gguf", dataset="", threads=1
    )
    for name, column in first.columns.items():
        assert np.allclose(column, second.columns[name], rtol=1e-5)


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    """Keys and tensors as tools/imatrix/imatrix.cpp writes them; a count of 0 means that nothing is known."""
    sums = {"blk.1.b.weight": np.array([2.0, 8.0]), "blk.0.a.weight": np.array([3.0]), "blk.2.c.weight": np.zeros(2)}
    counts = {"blk.1.b.weight": 4, "blk.0.a.weight": 3, "blk.2.c.weight": 0}
    write_imatrix(tmp_path / "i.gguf", sums, counts, dataset="d" * 200, chunks=5, size=512)
    file = open_gguf(tmp_path / "i.gguf")
    own = {key: value for key, value in file.fields.items() if not key.startswith("GGUF.")}
    assert own == {
        "general.type": "imatrix",
        "imatrix.datasets": ["d" * 200],
        "imatrix.chunk_count": 5,
        "imatrix.chunk_size": 512,
    }
    assert list(file.tensors) == [f"{name}{end}" for name in sorted(sums) for end in (".in_sum2", ".counts")]
    assert {tensor.tensor_type.name for tensor in file.tensors.values()} == {"F32"}
    read = read_imatrix(tmp_path / "i.gguf")
    assert {name: column.tolist() for name, column in read.columns.items()} == {
        "blk.0.a.weight": [1.0],
        "blk.1.b.weight": [0.5, 2.0],
        "blk.2.c.weight": [1.0, 1.0],
    }
    assert read.dataset == "d" * 127
    write_imatrix(tmp_path / "j.gguf", sums, {**counts, "blk.0.a.weight": 2}, dataset="", chunks=5, size=512)
    assert read.digest != read_imatrix(tmp_path / "j.gguf").digest


def test_what_is_no_matrix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("GGUF no")
    write_gguf(save_tiny(tmp_path / "model", num_hidden_layers=1), tmp_path / "m.gguf", "f16")
    for name in ("text.gguf", "m.gguf"):
        with pytest.raises(UserError, match="is no importance matrix"):
            read_imatrix(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_imatrix(tmp_path / "missing.gguf")


def test_a_signal_stops_it_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(save_tiny(tmp_path / "model", num_hidden_layers=1), tmp_path / "m.gguf", "f32")
    monkeypatch.setattr(module, "stop_requested", lambda: True)
    with pytest.raises(Stopped):
        compute_imatrix(tmp_path / "m.gguf", TEXTS, tmp_path / "i.gguf", dataset="", threads=1)
    assert not (tmp_path / "i.gguf").exists()


def test_another_layout_of_tensors_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that puts a field between others must be refused, not read."""
    import ctypes

    class Other(ctypes.Structure):
        _fields_ = (*module._Tensor._fields_[:5], ("new", ctypes.c_int64), *module._Tensor._fields_[5:])

    module._check_layout()
    module._check_layout.cache_clear()
    monkeypatch.setattr(module, "_Tensor", Other)
    with pytest.raises(UserError, match="lays its tensors out otherwise"):
        module._check_layout()
    module._check_layout.cache_clear()
