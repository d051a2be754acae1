"""A GGUF's own tokenizer and template, without a Hugging Face folder; and models in Ollama's store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import cache_in, packaged_source

from ssd_lite.engines.checks.gguf_check import PROBES
from ssd_lite.engines.checks.gguf_template import conversations
from ssd_lite.engines.model_source import resolve_model
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.stages.evaluate import evaluate_model
from ssd_lite.stages.weights import model_weights

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def both(packaged_model) -> tuple[ChatTokenizer, ChatTokenizer]:
    """The tokenizer of the folder, and that of the packaged GGUF as llama.cpp reads it."""
    return ChatTokenizer.load(packaged_model.folder), ChatTokenizer.load(packaged_source().gguf)


def test_it_reads_and_writes_the_same_ids(both) -> None:
    folder, file = both
    for text in (*PROBES, "", "<|im_start|>user\nHi<|im_end|>"):
        ids = folder.encode(text)
        assert file.encode(text) == ids
        assert file.decode(ids) == folder.decode(ids)
        assert file.decode(ids, skip_special=True) == folder.decode(ids, skip_special=True)
        assert file.encode_text(text) == folder.encode_text(text)


def test_it_knows_the_same_special_tokens(both) -> None:
    folder, file = both
    assert set(file.end_ids) >= set(folder.end_ids)
    assert (file.bos_id, file.end_id) == (folder.bos_id, folder.end_id)
    assert file.token(5) == folder.token(5)
    assert file.id_of("<|im_end|>") == folder.id_of("<|im_end|>")
    assert file.id_of("no such token") is None
    assert file.token(10**6) == ""
    assert file.numbers_like(folder)
    assert folder.numbers_like(file)
    assert file.numbers_like(file)


def test_it_renders_the_same_conversations(both) -> None:
    folder, file = both
    for conversation in conversations():
        rendered = folder.render(conversation.messages, **conversation.variables)
        assert file.render(conversation.messages, **conversation.variables) == rendered


def test_pieces_of_a_character_come_as_one_that_is_not_there_yet(both) -> None:
    _, file = both
    ids = file.encode("🚀")
    assert len(ids) > 1
    assert file.decode(ids[:1]).endswith("\ufffd")
    assert file.decode(ids) == "🚀"


def test_no_end_token_and_no_gguf_are_errors(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(UserError, match="cannot open it"):
        ChatTokenizer.load(tmp_path / "no.gguf")


def ollama(folder: Path, name: str, weights: Path, *, layers: tuple[dict[str, object], ...] = ()) -> Path:
    """A store as Ollama keeps it, with one model; the blob."""
    digest = "ab" * 32
    blob = folder / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True)
    shutil.copyfile(weights, blob)
    model = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 1}
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "cd" * 32, "size": 1}
    manifest = folder / "manifests" / name
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [model, template, *layers]}))
    return blob


def test_a_model_that_ollama_fetched_is_found_by_its_name(tmp_path: Path, monkeypatch) -> None:
    gguf = packaged_source().gguf
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    blob = ollama(tmp_path / "store", "registry.ollama.ai/library/smollm2/135m", gguf)
    source = resolve_model("ollama:smollm2:135m")
    assert (source.kind, source.gguf) == ("gguf", blob)
    assert resolve_model(str(blob)).weights_sha256 == source.weights_sha256 == packaged_source().weights_sha256
    for name, words in (
        ("ollama:smollm2", "no model smollm2"),
        ("ollama:other/smollm2:135m", "no model other/smollm2"),
        ("ollama:../../x", "no name of an Ollama model"),
    ):
        with pytest.raises(UserError, match=words):
            resolve_model(name)


@pytest.mark.parametrize("place", ["registry.ollama.ai/me/mine/latest", "ghcr.io/me/mine/latest"])
def test_names_with_a_namespace_and_a_host(tmp_path: Path, monkeypatch, place: str) -> None:
    from ssd_lite.engines.ollama_store import ollama_gguf

    (tmp_path / "w").write_bytes(b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    blob = ollama(tmp_path / "store", place, tmp_path / "w")
    name = "ollama:me/mine" if place.startswith("registry") else "ollama:ghcr.io/me/mine"
    assert ollama_gguf(name, "model.name") == blob


def test_an_adapter_and_lost_weights_are_refused(tmp_path: Path, monkeypatch) -> None:
    from ssd_lite.engines.ollama_store import ollama_gguf

    (tmp_path / "w").write_bytes(b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "one"))
    ollama(tmp_path / "one", "registry.ollama.ai/library/m/latest", tmp_path / "w").unlink()
    with pytest.raises(UserError, match="its weights are not there"):
        ollama_gguf("ollama:m", "model.name")
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:" + "ef" * 32}
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "two"))
    ollama(tmp_path / "two", "registry.ollama.ai/library/m/latest", tmp_path / "w", layers=(adapter,))
    with pytest.raises(UserError, match="has an adapter"):
        ollama_gguf("ollama:m", "model.name")


@pytest.mark.slow
def test_a_gguf_is_evaluated_without_a_folder_of_it(tmp_path: Path) -> None:
    """Also one that has no suffix, as Ollama keeps it; nothing is dequantised."""
    blob = tmp_path / f"sha256-{'ab' * 32}"
    shutil.copyfile(packaged_source().gguf, blob)
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"name": str(blob)},
            "problems": {"evaluate_limit": 2},
            "evaluate": {"n": 1, "k": [1], "max_new_tokens": 16, "sandbox": "none", "engine": "llama_cpp"},
            "threads": 1,
        }
    )
    (tmp_path / "out").mkdir()
    with cache_in(tmp_path / "cache"):
        report = evaluate_model(recipe, tmp_path / "out")
        assert (report["samples"], report["gguf_type"]) == (2, "as in the file")
        assert not list((tmp_path / "cache").glob("hf-*"))
        source = resolve_model(str(blob))
        assert model_weights(source, "llama_cpp", "f16", 1, gguf=True).folder == blob


_CHAT = """
import sys
for name in ("torch", "transformers", "safetensors", "tokenizers", "gguf", "peft"):
    sys.modules[name] = None  # an import of it fails
from pathlib import Path
from ssd_lite.stages.chat import ChatOptions, chat
print("REPLY", repr(chat(sys.argv[1], ChatOptions(prompt="Say hello.", max_new_tokens=8, threads=1))))
"""


def test_chat_on_a_gguf_needs_llama_cpp_alone(tmp_path: Path) -> None:
    """Without torch, transformers, tokenizers and gguf, and without writing a folder of the model."""
    import os

    environment = {**os.environ, "SSD_LITE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _CHAT, str(packaged_source().gguf)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.partition("REPLY ")[2]) > 10
    assert not list(tmp_path.glob("hf-*"))
