"""An export without a merged folder: the same bytes as through one, several types, a matrix, and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import save_tiny

from ssd_lite.cli import main
from ssd_lite.engines.gguf import stream as gguf_stream
from ssd_lite.engines.gguf.imatrix_file import read_imatrix
from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.engines.model_source import resolve_model
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_section import Decoding
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.chat import ChatOptions, open_model
from ssd_lite.stages.conversation.gguf_file import file_decoding
from ssd_lite.stages.export import export, export_folder, export_more, tuned_gguf
from ssd_lite.stages.exports.serving import served_files
from ssd_lite.stages.merge import merge
from ssd_lite.stages.upload.files import pieces, refuse_what_is_not_there

pytest.importorskip("llama_cpp")
pytest.importorskip("peft")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}


def _make_run(folder: Path, base: Path, **sections: Any) -> RunFolder:
    """A run whose training is done: a random adapter on all linear layers, and three training rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    recipe = {
        "name": "tiny",
        "model": {"name": str(base)},
        "export": {"types": ["q8_0", "q4_k_m", "bf16"], "check": False},
        "merge": {"check_prompts": 0},
    }
    run = RunFolder.create(folder, Recipe.model_validate({**recipe, **sections}))
    torch.manual_seed(1)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear", r=4))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(run.adapter)
    recorded = {"name": str(base), "revision": None, "weights_sha256": resolve_model(str(base)).weights_sha256}
    (run.adapter / "ssd_lite_base.json").write_text(json.dumps(recorded))
    run.finish("train", {"steps": 3, "final_loss": 1.25}, 1.0)
    rows = [
        {"problem_id": f"p{i}", "index": 0, "prompt_ids": [5, 6, 7 + i], "completion_ids": list(range(100, 140 + i))}
        for i in range(3)
    ]
    run.train_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    return save_tiny(tmp_path / "base", "llama", dtype="bfloat16", shard_size="500KB", **WIDE)


def _bytes(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.gguf.glob("*.gguf"))}


@pytest.mark.parametrize("dtype", ["base", "float32"])
def test_a_run_without_merged_gives_the_bytes_of_one_with_it(dtype: str, base: Path, tmp_path: Path) -> None:
    through = _make_run(tmp_path / "a", base, merge={"dtype": dtype, "check_prompts": 0})
    merge(through)
    export(through)
    direct = _make_run(tmp_path / "b", base, merge={"dtype": dtype, "check_prompts": 0})
    summary = export(direct)
    assert not direct.merged.exists()
    assert [file["type"] for file in summary["files"]] == ["q8_0", "q4_k_m", "bf16"]
    ours, theirs = _bytes(direct), _bytes(through)
    assert set(ours) == {"tiny-q8_0.gguf", "tiny-q4_k_m.gguf", "tiny-bf16.gguf"}
    for name, data in theirs.items():
        assert ours[name] == data, name
    # And it is not the base that was written.
    export_folder(base, ["bf16"], tmp_path / "untuned", check=False)
    tuned, untuned = open_gguf(direct.gguf / "tiny-bf16.gguf"), open_gguf(tmp_path / "untuned" / "base-bf16.gguf")
    assert tuned.tensors["blk.0.attn_q.weight"].data.tobytes() != untuned.tensors["blk.0.attn_q.weight"].data.tobytes()


def test_a_deleted_merged_folder_is_no_hindrance_and_files_of_before_still_count(base: Path, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", base)
    merge(run)
    first = tuned_gguf(run, "q8_0")
    stamp = first.stat().st_mtime_ns
    shutil.rmtree(run.merged)
    export(run)
    assert first.stat().st_mtime_ns == stamp
    merge(run)
    assert tuned_gguf(run, "bf16").is_file()


def test_another_adapter_is_not_passed_off_as_this_one(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    run = _make_run(tmp_path / "run", base)
    tuned_gguf(run, "q8_0")
    file = run.adapter / "adapter_model.safetensors"
    save_file({name: array + np.float32(1) for name, array in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not made from these weights"):
        tuned_gguf(run, "q8_0")


def test_base_and_adapter_folders(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _make_run(tmp_path / "run", base)
    export(run)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.adapter, tmp_path / "tiny")
    arguments = ["export", "base", "--adapter", "tiny", "--to", "bf16,Q4_K_M", "--no-check", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["files"]
    assert [file["path"] for file in files] == ["tiny-gguf/tiny-bf16.gguf", "tiny-gguf/tiny-q4_k_m.gguf"]
    ours, theirs = open_gguf(tmp_path / files[1]["path"]), open_gguf(run.gguf / "tiny-q4_k_m.gguf")
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].data.tobytes() == tensor.data.tobytes(), name
    other = save_tiny(tmp_path / "other", "llama", num_hidden_layers=1)
    with pytest.raises(UserError, match="with other weights"):
        export_folder(other, ["bf16"], tmp_path / "out", adapter=run.adapter)
    with pytest.raises(UserError, match="holds no adapter_config"):
        export_folder(base, ["bf16"], tmp_path / "out", adapter=other)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_rounds_away_is_refused_and_nothing_is_left(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    run = _make_run(tmp_path / "run", base)
    file = run.adapter / "adapter_model.safetensors"
    save_file(
        {name: array * np.float32(1e-9) for name, array in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match="changes 0 of 14 weights once rounded"):
        export(run)
    assert [path.name for path in run.gguf.iterdir() if not path.name.endswith(".source.json")] == []


def test_a_stopped_export_goes_on_and_still_counts_what_changed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _make_run(tmp_path / "whole", base)
    export(whole)
    run = _make_run(tmp_path / "run", base)
    asked = iter([False] * 20 + [True] * 100)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_stream, "stop_requested", lambda: next(asked))
        with pytest.raises(Stopped):
            export(run)
    note = json.loads((run.gguf / ".tiny-q8_0.gguf.part-export.json").read_text())
    assert 0 < note["state"]["tensors"] < 14
    export(run)  # the count of both processes together is what the check asks for: 14 changed weights
    assert _bytes(run) == _bytes(whole)
    assert not list(run.gguf.glob(".*part*"))


def test_a_part_that_is_ahead_keeps_its_own_count(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that begins where the second file is must not note its lower count of changed weights for the first."""
    run = _make_run(tmp_path / "run", base)

    def stopped(blocks: int, *types: str) -> None:
        asked = iter([False] * blocks + [True] * 100)
        with monkeypatch.context() as patch:
            patch.setattr(gguf_stream, "stop_requested", lambda: next(asked))
            with pytest.raises(Stopped):
                export_more(run, list(types), check=False)

    stopped(20, "q8_0")
    stopped(8, "f16")
    ahead, behind = (run.gguf / f".tiny-{name}.gguf.part-export.json" for name in ("q8_0", "f16"))
    before, less = json.loads(ahead.read_text()), json.loads(behind.read_text())
    assert before["state"]["tensors"] > less["state"]["tensors"]
    stopped(2, "q8_0", "f16")
    assert json.loads(ahead.read_text()) == before
    assert less["tensors"] < json.loads(behind.read_text())["tensors"] < before["tensors"]


def test_a_matrix_of_the_training_rows(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _make_run(
        tmp_path / "run", base, export={"types": ["q4_k_m", "iq2_xxs", "f16"], "imatrix": True, "check": False}
    )
    summary = export(run)
    names = {"tiny-imatrix.gguf", "tiny-imatrix-q4_k_m.gguf", "tiny-imatrix-iq2_xxs.gguf", "tiny-f16.gguf"}
    assert set(_bytes(run)) == names
    assert summary["imatrix"] == "gguf/tiny-imatrix.gguf"
    matrix = read_imatrix(run.gguf / "tiny-imatrix.gguf")
    assert (matrix.dataset, matrix.chunks, len(matrix.columns)) == ("train.jsonl", 3, 14)
    fields = open_gguf(run.gguf / "tiny-imatrix-q4_k_m.gguf").fields
    assert fields["quantize.imatrix.dataset"] == "train.jsonl"
    assert not list(run.gguf.glob(".tiny-q8_0*.gguf"))
    # Killed between writing the last file and the manifest: the matrix is named again, and nothing hidden stays.
    manifest = run.manifest()
    del manifest["stages"]["export"]
    run.manifest_file.write_text(json.dumps(manifest))
    assert export(run)["imatrix"] == summary["imatrix"]
    # What evaluation reads is the exported file; the arm that is compared with the base has no matrix, as the base.
    assert tuned_gguf(run, "q4_k_m") == run.gguf / "tiny-imatrix-q4_k_m.gguf"
    assert tuned_gguf(run, run.recipe.model.gguf_type) == run.gguf / "tiny-f16.gguf"
    plain = export_more(_make_run(tmp_path / "plain", base), ["q4_k_m"], check=False)
    assert Path(plain["files"][0]["path"]).read_bytes() != (run.gguf / "tiny-imatrix-q4_k_m.gguf").read_bytes()


def test_a_kill_between_matrix_and_clean_up_leaves_nothing_hidden(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _make_run(tmp_path / "run", base, export={"types": ["q4_k_m"], "imatrix": True, "check": False})

    class Killed(BaseException):
        pass

    plain = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith(".tiny-q8_0-"):
            raise Killed
        plain(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            export(run)
    assert len(list(run.gguf.glob(".tiny-q8_0-*.gguf"))) == 1
    assert (run.gguf / "tiny-imatrix.gguf").is_file()
    export(run)
    assert not list(run.gguf.glob(".tiny-q8_0-*.gguf"))


@pytest.mark.slow
def test_more_types_of_a_run_and_the_forms_of_texts(base: Path, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", base)
    before = export(run)
    with pytest.raises(UserError, match="iq2_xxs needs an importance matrix"):
        export_more(run, ["iq2_xxs"])
    assert not (run.gguf / "tiny-iq2_xxs.gguf").exists()
    command = ["export", str(run.path), "--to", "iq2_xxs", "--no-check", "--imatrix"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert (run.gguf / "tiny-imatrix-iq2_xxs.gguf").is_file()
    assert export(run) == before
    assert "tiny-q8_0.gguf" in (run.gguf / "SERVING.md").read_text()
    (tmp_path / "text.txt").write_text("def add(a, b):\n    return a + b\n" * 300)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "Add 2 and 3."}]})
        + "\n"
        + json.dumps({"text": "x = 1"})
        + "\n"
    )
    given = run.gguf / "tiny-imatrix.gguf"
    for number, file in enumerate((tmp_path / "text.txt", tmp_path / "rows.jsonl", run.train_rows, given)):
        out = tmp_path / f"out{number}"
        done = CliRunner().invoke(main, [*command[:1], str(base), *command[2:], str(file), "--out", str(out)])
        assert done.exit_code == 0, done.output
        noted = open_gguf(out / "base-imatrix-iq2_xxs.gguf").fields
        assert noted["quantize.imatrix.dataset"] == (file.name if file != given else "train.jsonl")


def test_texts_that_are_none_are_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "odd.jsonl").write_text('{"question": 1}\n')
    (tmp_path / "torn.jsonl").write_text("{")
    cases = {
        "auto": "only a run has texts",
        str(tmp_path / "missing.txt"): "is no file",
        str(tmp_path / "empty.txt"): "holds no text",
        str(tmp_path / "odd.jsonl"): "neither prompt_ids nor messages",
        str(tmp_path / "torn.jsonl"): "no JSON a line",
    }
    for value, words in cases.items():
        with pytest.raises(UserError, match=words):
            export_folder(base, ["q4_k_m"], tmp_path / "out", imatrix=value)
    assert not (tmp_path / "out").exists()
    run = _make_run(tmp_path / "run", base, export={"imatrix": True})
    run.train_rows.unlink()
    with pytest.raises(UserError, match="has no training rows"):
        export(run)


def _served(run: RunFolder) -> tuple[list[str], str]:
    """The files that SERVING.md lists, and the one that the Modelfile names."""
    named = served_files(run.gguf / "SERVING.md")
    assert named is not None
    return named, (run.gguf / "Modelfile").read_text().split("FROM ./", 1)[1].split()[0]


def _pushed(run: RunFolder) -> set[str]:
    refuse_what_is_not_there(run, "gguf")
    return {piece.name for piece in pieces(run, "gguf", {"gguf": "me/tiny-gguf"})}


def test_a_later_export_is_noted_served_and_pushed_with_the_first(base: Path, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", base, export={"types": ["q4_k_m"], "check": False})
    stage = export(run)
    before = run.manifest()["stages"]["export"]
    export_more(run, ["q4_k_m", "q8_0"], imatrix="auto", check=False)
    assert export(run) == stage
    assert run.manifest()["stages"]["export"] == before, "the stage's summary and digest stay"
    (later,) = run.manifest()["later_exports"]
    assert [file["path"] for file in later["files"]] == ["gguf/tiny-imatrix-q4_k_m.gguf", "gguf/tiny-q8_0.gguf"]
    assert later["imatrix"] == "gguf/tiny-imatrix.gguf"
    assert later["checks"]["template"]["equal"]
    first, *others = ["tiny-q4_k_m.gguf", "tiny-imatrix-q4_k_m.gguf", "tiny-q8_0.gguf"]
    assert _served(run) == ([first, *others], first)
    assert "(q4_k_m, with importance matrix)" in (run.gguf / "SERVING.md").read_text()
    assert _pushed(run) >= {first, *others, "tiny-imatrix.gguf", "Modelfile", "SERVING.md"}
    # Again: noted once. Elsewhere: an export of its own, as its files are not the run's.
    export_more(run, ["q8_0"], run.path / "gguf" / ".." / "gguf", check=False)
    export_more(run, ["f16"], tmp_path / "elsewhere", check=False)
    noted = [file["path"] for entry in run.manifest()["later_exports"] for file in entry["files"]]
    assert sorted(noted) == ["gguf/tiny-imatrix-q4_k_m.gguf", "gguf/tiny-q8_0.gguf"]
    assert _served(run)[1] == first


def test_what_is_deleted_is_not_served_nor_pushed_any_more(base: Path, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", base, export={"types": ["q4_k_m"], "check": False})
    export(run)
    export_more(run, ["q8_0"], check=False)
    (run.gguf / "tiny-q8_0.gguf").unlink()
    with pytest.raises(UserError, match=f"names tiny-q8_0.gguf, .*Type: ssd-lite export {run.path}"):
        refuse_what_is_not_there(run, "gguf")
    export(run)
    assert _served(run) == (["tiny-q4_k_m.gguf"], "tiny-q4_k_m.gguf")
    assert "tiny-q8_0.gguf" not in _pushed(run)
    # The first file goes and comes back: it is the one that commands name, later ones are named too.
    export_more(run, ["q8_0"], check=False)
    (run.gguf / "tiny-q4_k_m.gguf").unlink()
    export(run)
    assert _served(run) == (["tiny-q4_k_m.gguf", "tiny-q8_0.gguf"], "tiny-q4_k_m.gguf")


def test_a_file_of_a_run_chats_under_its_own_law(base: Path, tmp_path: Path) -> None:
    tuned = {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.05}
    run = _make_run(tmp_path / "run", base, evaluate={"tuned": tuned})
    file = tuned_gguf(run, "q8_0")
    model = open_model(file, ChatOptions(max_new_tokens=7))
    law = (model.settings.temperature, model.settings.top_k, model.settings.top_p, model.settings.min_p)
    assert law == (1.1, 40, 0.9, 0.05)
    assert model.settings.max_new_tokens == 7, "an option wins"
    assert model.title == f"{file} · temperature 1.1, top-k 40, top-p 0.9, min-p 0.05, from the file"
    plain = Path(export_folder(base, ["q8_0"], tmp_path / "plain", check=False)["files"][0]["path"])
    model = open_model(plain, ChatOptions())
    assert (model.settings.temperature, model.settings.top_k, model.settings.top_p) == (0.7, 20, 0.8)
    assert "dequantised" not in model.title


def test_a_cut_file_is_not_pushed(base: Path, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", base, export={"types": ["q4_k_m"], "check": False})
    export(run)
    file = run.gguf / "tiny-q4_k_m.gguf"
    file.write_bytes(file.read_bytes()[:-1])
    export(run)
    with pytest.raises(UserError, match="is missing or cut"):
        refuse_what_is_not_there(run, "gguf")


@pytest.mark.parametrize(
    ("written", "law"),
    [
        ({"temp": 0.0}, (1.0, 1, 0.8, 0.0)),
        ({"temp": 0.5, "top_k": -1}, (0.5, 0, 0.8, 0.0)),
        ({"top_p": 0.5, "min_p": 0.25}, (0.7, 20, 0.5, 0.25)),
        ({"temp": 0.5, "top_p": 7.0}, None),
        ({}, None),
    ],
)
def test_laws_of_other_programs(written: dict[str, float], law: tuple[float, ...] | None, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    file = tmp_path / "other.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(10)
    for key, value in written.items():
        add = writer.add_int32 if key == "top_k" else writer.add_float32
        add(f"general.sampling.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = file_decoding(file, Decoding(temperature=0.7))
    assert law == (found and (found.temperature, found.top_k, found.top_p, found.min_p))
