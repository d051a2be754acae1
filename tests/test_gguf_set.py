"""One pass writes every type byte for byte as llama.cpp's own quantiser does, and a pass that was cut goes on."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_gguf import write_gguf
from tiny_models import save_tiny

from ssd_lite.engines.gguf import part as gguf_part
from ssd_lite.engines.gguf import stream as gguf_stream
from ssd_lite.engines.gguf import types as gguf_types
from ssd_lite.engines.gguf.imatrix_file import Imatrix
from ssd_lite.engines.gguf.quantise import quantise
from ssd_lite.engines.gguf.set import write_gguf_set, write_pass
from ssd_lite.engines.gguf.types import FILE_TYPES
from ssd_lite.engines.weights.model_folder import ModelFolder
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe_section import NEEDS_IMATRIX, Decoding

pytest.importorskip("llama_cpp")
# 256 columns: what K-quants need. Eight layers: enough for every rule of a mixture by layer.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
DECODING = Decoding(temperature=1.1, top_k=20, top_p=0.8)


def _imatrix(folder: Path) -> Imatrix:
    """Made-up weights of columns for every weight of the layers."""
    from ssd_lite.engines.gguf.model import GgufModel

    draw = np.random.default_rng(0)
    tensors = [t for t in GgufModel(ModelFolder(folder)).tensors if t.name.startswith("blk.") and not t.is_vector]
    return Imatrix({t.name: draw.random(t.shape[-1]).astype(np.float32) for t in tensors}, "m.gguf", "some text", 3)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("wide") / "model", "qwen3", dtype="bfloat16", **WIDE)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer: types of 1 to 3 bits search long for each weight."""
    settings = WIDE | {"num_hidden_layers": 1, "intermediate_size": 256, "num_attention_heads": 4}
    return save_tiny(tmp_path_factory.mktemp("narrow") / "model", "qwen3", dtype="bfloat16", **settings)


def _types(*, with_matrix: bool) -> list[str]:
    return [name for name in FILE_TYPES if with_matrix or name not in NEEDS_IMATRIX]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_one_pass_writes_what_llama_cpps_quantiser_writes(dtype: str, tmp_path: Path) -> None:
    settings = WIDE | {"num_hidden_layers": 2, "tie_word_embeddings": dtype == "float16"}
    folder = save_tiny(tmp_path / "model", "llama", dtype=dtype, shard_size="1MB", **settings)
    exact = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}[dtype]
    types = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", exact]
    paths = {name: tmp_path / f"m-{name}.gguf" for name in types}
    assert set(write_gguf_set(folder, paths, decoding=DECODING, threads=2)) == set(types)
    write_gguf(folder, tmp_path / "exact.gguf", exact, decoding=DECODING)
    assert (tmp_path / "exact.gguf").read_bytes() == paths[exact].read_bytes()
    for name in types[:-1]:
        quantise(tmp_path / "exact.gguf", tmp_path / "theirs.gguf", name)
        assert (tmp_path / "theirs.gguf").read_bytes() == paths[name].read_bytes(), name


@pytest.mark.slow
def test_every_type_is_byte_for_byte_llama_cpps(narrow: Path, tmp_path: Path) -> None:
    types = [name for name in _types(with_matrix=False) if name not in ("f32", "f16", "bf16")]
    paths = {name: tmp_path / f"m-{name}.gguf" for name in types}
    write_gguf_set(narrow, paths, threads=2)
    write_gguf(narrow, tmp_path / "exact.gguf", "bf16")
    for name in types:
        quantise(tmp_path / "exact.gguf", tmp_path / "theirs.gguf", name)
        assert (tmp_path / "theirs.gguf").read_bytes() == paths[name].read_bytes(), name


def test_rows_that_do_not_fit_a_type_fall_back_as_in_llama_cpp(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen2", hidden_size=96, intermediate_size=80, num_attention_heads=6)
    paths = {name: tmp_path / f"m-{name}.gguf" for name in ("q4_k_m", "q6_k", "q8_0")}
    write_gguf_set(folder, paths)
    write_gguf(folder, tmp_path / "exact.gguf", "f32")
    for name, path in paths.items():
        quantise(tmp_path / "exact.gguf", tmp_path / "theirs.gguf", name)
        assert (tmp_path / "theirs.gguf").read_bytes() == path.read_bytes(), name


_SEARCHED = pytest.param([*sorted(NEEDS_IMATRIX - {"iq3_xxs", "q2_k_s"})], marks=pytest.mark.slow, id="few bits")


@pytest.mark.slow
@pytest.mark.parametrize(
    "types", [pytest.param(["q4_k_m", "q4_0", "iq3_xxs", "q2_k_s", "q8_0"], id="more bits"), _SEARCHED]
)
def test_with_a_matrix_the_tensors_are_llama_cpps_and_the_file_notes_it(
    types: list[str], narrow: Path, tmp_path: Path
) -> None:
    from ssd_lite.engines.gguf.read import open_gguf

    matrix = _imatrix(narrow)
    paths = {name: tmp_path / f"m-{name}.gguf" for name in types}
    write_gguf_set(narrow, paths, imatrix=matrix, threads=2)
    write_gguf(narrow, tmp_path / "exact.gguf", "bf16")
    expected = {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "some text",
        "quantize.imatrix.entries_count": len(matrix.columns),
        "quantize.imatrix.chunks_count": 3,
    }
    for name in types:
        quantise(tmp_path / "exact.gguf", tmp_path / "theirs.gguf", name, imatrix=matrix)
        ours, theirs = open_gguf(paths[name]), open_gguf(tmp_path / "theirs.gguf")
        own = {key: value for key, value in ours.fields.items() if key not in theirs.fields}
        assert own == ({} if name == "q8_0" else expected)  # which a matrix does not change
        counted = {"GGUF.kv_count": len(theirs.fields) - 3 + len(own)}
        assert {key: value for key, value in ours.fields.items() if key not in own} == theirs.fields | counted
        assert list(ours.tensors) == list(theirs.tensors)
        for tensor, other in zip(ours.tensors.values(), theirs.tensors.values(), strict=True):
            assert (tensor.tensor_type, tensor.data.tobytes()) == (other.tensor_type, other.data.tobytes()), name


def test_a_matrix_changes_what_is_written(narrow: Path, tmp_path: Path) -> None:
    from ssd_lite.engines.gguf.read import open_gguf

    with_matrix, without = {"q4_k_m": tmp_path / "with.gguf"}, {"q4_k_m": tmp_path / "without.gguf"}
    write_gguf_set(narrow, with_matrix, imatrix=_imatrix(narrow))
    write_gguf_set(narrow, without)
    ours, theirs = (open_gguf(paths["q4_k_m"]).tensors["blk.0.attn_k.weight"].data for paths in (with_matrix, without))
    assert ours.tobytes() != theirs.tobytes()


@pytest.mark.parametrize("name", sorted(NEEDS_IMATRIX))
def test_types_that_need_a_matrix_are_refused_before_anything_is_written(name: str, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs an importance matrix"):
        write_gguf_set(wide, {"q8_0": tmp_path / "a.gguf", name: tmp_path / "b.gguf"})
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_of_another_model_is_refused(wide: Path, tmp_path: Path) -> None:
    matrix = _imatrix(wide)
    other = {**matrix.columns, "blk.1.ffn_down.weight": np.ones(8, np.float32)}
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down\.weight has 8 columns there, here 512"):
        write_gguf_set(wide, {"q4_k_m": tmp_path / "a.gguf"}, imatrix=Imatrix(other, "m", "", 1))
    del other["blk.1.ffn_down.weight"]
    with pytest.raises(UserError, match="has 0 columns"):
        write_gguf_set(wide, {"q4_k_m": tmp_path / "a.gguf"}, imatrix=Imatrix(other, "m", "", 1))
    assert list(tmp_path.iterdir()) == []


class _Cut(Exception):
    pass


def _cut_after(monkeypatch: pytest.MonkeyPatch, tensors: int, error: BaseException) -> list[str]:
    """Let a pass save after every tensor and die after so many; the list takes the names of those that were read."""
    read: list[str] = []
    plain = gguf_stream._write_tensor

    def write(model: Any, tensor: Any, *more: Any) -> bool:
        if len(read) == tensors:
            raise error
        read.append(tensor.name)
        return bool(plain(model, tensor, *more))

    monkeypatch.setattr(gguf_stream, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(gguf_stream, "_write_tensor", write)
    return read


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_was_saved(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: tmp_path / f"whole-{name}.gguf" for name in ("q8_0", "q4_k_m")}
    write_gguf_set(wide, whole, name="n")
    paths = {name: tmp_path / "out" / f"m-{name}.gguf" for name in whole}
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        first = _cut_after(patch, 11, _Cut())
        with pytest.raises(_Cut):
            write_gguf_set(wide, paths, name="n")
    assert not any(path.exists() for path in paths.values())
    part = tmp_path / "out" / ".m-q8_0.gguf.part-export"
    with open(part, "ab") as file:
        file.write(b"torn tensor")  # what a kill leaves behind the last save
    with monkeypatch.context() as patch:
        second = _cut_after(patch, -1, _Cut())
        said: list[str] = []
        write_gguf_set(wide, paths, name="n", say=said.append)
    assert "goes on" in said[0]
    assert len(first) == 11
    assert not set(first) & set(second)
    for name, path in paths.items():
        assert path.read_bytes() == whole[name].read_bytes()
    assert sorted(tmp_path.glob("out/*")) == sorted(paths.values())
    assert sorted(tmp_path.glob("out/.*")) == []


def test_finished_types_are_kept_and_a_type_that_joins_later_is_written_from_the_start(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "m-q8_0.gguf"
    write_gguf_set(wide, {"q8_0": done})
    stamp = done.stat().st_mtime_ns
    paths = {"q8_0": done, "q6_k": tmp_path / "m-q6_k.gguf"}
    with monkeypatch.context() as patch:
        _cut_after(patch, 5, _Cut())
        with pytest.raises(_Cut):
            write_gguf_set(wide, paths)
    write_gguf_set(wide, {**paths, "f16": tmp_path / "m-f16.gguf"})
    assert done.stat().st_mtime_ns == stamp
    write_gguf(wide, tmp_path / "f16.gguf", "f16")
    assert (tmp_path / "f16.gguf").read_bytes() == (tmp_path / "m-f16.gguf").read_bytes()
    write_gguf_set(wide, {"q6_k": tmp_path / "q6_k.gguf"})
    assert (tmp_path / "q6_k.gguf").read_bytes() == (tmp_path / "m-q6_k.gguf").read_bytes()


def test_a_part_of_other_weights_is_begun_anew(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _cut_after(patch, 5, _Cut())
        with pytest.raises(_Cut):
            write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf"}, decoding=DECODING)
    said: list[str] = []
    write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf"}, say=said.append)
    assert "goes on" not in said[0]
    write_gguf_set(wide, {"q8_0": tmp_path / "whole.gguf"})
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_signal_saves_and_stops(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False] * 6 + [True] * 100)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_stream, "stop_requested", lambda: next(asked))
        with pytest.raises(Stopped, match="run the same command again"):
            write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf"})
    note = json.loads((tmp_path / ".m.gguf.part-export.json").read_text())
    assert 0 < note["tensors"] < 10
    write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf"})
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


class _FullDisk(io.FileIO):
    """A disk with room for 1,500,000 bytes a file; the write that meets its end is cut, as a real one is."""

    def write(self, data: Any) -> int:
        room = 1_500_000 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data)[:room])


def test_a_disk_that_fills_up_is_said_and_the_export_goes_on_later(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gguf_stream, "SAVE_EVERY_S", -1.0)
        patch.setattr(gguf_part.io, "FileIO", _FullDisk)
        with pytest.raises(UserError, match="No space left on device") as caught:
            write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf"})
    assert "goes on where it stopped" in caught.value.message
    assert not (tmp_path / "m.gguf").exists()
    said: list[str] = []
    write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf"}, say=said.append)
    assert "goes on" in said[0]
    write_gguf_set(wide, {"q8_0": tmp_path / "whole.gguf"})
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_too_small_a_disk_is_refused_before_anything_is_written(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match="writing q8_0, f16 needs"):
        write_gguf_set(wide, {"q8_0": tmp_path / "m.gguf", "f16": tmp_path / "n.gguf"})
    assert list(tmp_path.iterdir()) == []


def test_an_older_llama_cpp_is_refused_before_anything_is_written(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot say its formats beforehand; what needs no quantiser is still written."""
    settings = type("Settings", (), {"imatrix": None})
    monkeypatch.setattr(gguf_types, "quantiser_settings", lambda *_: (settings(), []))
    with pytest.raises(UserError, match="cannot say which number format") as caught:
        write_gguf_set(wide, {"q4_k_m": tmp_path / "m.gguf"})
    assert "llama-cpp-python>=0.3.36" in caught.value.message
    assert list(tmp_path.iterdir()) == []
    write_gguf_set(wide, {"f16": tmp_path / "m.gguf"})
    assert (tmp_path / "m.gguf").is_file()


def test_one_block_of_a_tensor_is_in_memory_at_a_time(wide: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Blocks of a few rows give the same bytes as whole tensors, so that the size of a tensor does not matter."""
    write_pass(ModelFolder(wide), {"q4_k_m": tmp_path / "a.gguf"}, name="n")
    largest = 0
    plain = gguf_stream.quantise_rows

    def watched(rows: Any, *more: Any) -> Any:
        nonlocal largest
        largest = max(largest, rows.size)
        return plain(rows, *more)

    monkeypatch.setattr("ssd_lite.engines.weights.safetensors_file.BLOCK_NUMBERS", 7 * 256)
    monkeypatch.setattr(gguf_stream, "quantise_rows", watched)
    write_pass(ModelFolder(wide), {"q4_k_m": tmp_path / "b.gguf"}, name="n")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert largest <= 7 * 256


def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = save_tiny(tmp_path / "model", num_hidden_layers=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight has weights that are not finite"):
        write_gguf_set(folder, {"q8_0": tmp_path / "out" / "m.gguf", "f16": tmp_path / "out" / "n.gguf"})
    assert list((tmp_path / "out").iterdir()) == []
