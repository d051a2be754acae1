"""Model names, dequantised GGUFs, and folders that are no models."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from plain_gguf import write_gguf
from tiny_models import cache_in, packaged_folder, packaged_source, save_tiny, shared_cache

from ssd_lite.engines import model_source
from ssd_lite.engines.gguf.quantise import Vocabulary
from ssd_lite.engines.model_source import gguf_file, hf_folder, resolve_model
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.engines.weights import model_cache
from ssd_lite.engines.weights.model_folder import INDEX_FILE, SOURCE_FILE, weights_sha256
from ssd_lite.errors import UserError
from ssd_lite.stages.upload.files import _LICENCE_FILES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_the_packaged_model_has_the_tensors_transformers_reads() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    source = packaged_source()
    assert source.gguf is not None
    theirs = AutoModelForCausalLM.from_pretrained(source.gguf.parent, gguf_file=source.gguf.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(packaged_folder())
    wanted = theirs.state_dict()
    assert set(wanted) == set(ours.state_dict())
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())
    assert ours.dtype == torch.float32
    assert ours.generation_config.eos_token_id == [2, 0]
    origin = json.loads((packaged_folder() / SOURCE_FILE).read_text())
    assert origin["sha256"] == source.weights_sha256
    assert origin["tensor_types"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}


def _texts() -> list[str]:
    code = [path.read_text() for path in sorted(Path(model_source.__file__).parents[1].rglob("*.py"))]
    lines = [line for text in code for line in text.splitlines() if line.strip()]
    odd = [
        "12345 ٣٤٥ ½ 3.14",
        "北京 naïve café привет",
        "🚀👩‍👩‍👧",
        "I've WE'LL don't",
        " \r\n \r\n\t\t x ",
        "<|im_start|>user\nhi<|im_end|>\n",
        "a<|endoftext|>b",
    ]
    return [*odd, *code[:20], *lines[:400]]


def test_token_ids_are_those_of_llama_cpp() -> None:
    source = packaged_source()
    assert source.gguf is not None
    view, tokenizer = Vocabulary(source.gguf), ChatTokenizer.load(packaged_folder())
    texts = _texts()
    assert len(texts) > 400
    assert [t for t in texts if view.tokenise(t, parse_special=True) != tokenizer.encode(t)] == []
    view.close()


def test_a_gguf_is_converted_once_and_the_conversion_is_found_again(tmp_path: Path) -> None:
    write_gguf(save_tiny(tmp_path / "model"), tmp_path / "m.gguf", "f16")
    source = resolve_model(str(tmp_path / "m.gguf"))
    assert source.kind == "gguf"
    folder = hf_folder(source)
    before = (folder / "model.safetensors").stat()
    assert hf_folder(resolve_model(str(tmp_path / "m.gguf"))) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    quantised = gguf_file(source, "q8_0")
    assert quantised == gguf_file(source, "q8_0")
    assert not [p for p in (tmp_path / "cache").iterdir() if ".part-" in p.name or ".exact" in p.name]
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="missing or cut"):
        hf_folder(source)


def test_a_folder_and_its_hash(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", shard_size="150KB")
    source = resolve_model(str(folder))
    assert (source.kind, source.folder, source.revision) == ("folder", folder, None)
    assert hf_folder(source) == folder
    shard = sorted(folder.glob("*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert weights_sha256(folder) != source.weights_sha256


def test_a_hash_is_remembered_and_the_hub_cache_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"abc")
    first = model_cache.file_sha256(file)
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"not what its name says")
    (tmp_path / "link").symlink_to(blob)
    monkeypatch.setattr(model_cache, "sha256_of_file", lambda path: "read again")
    assert model_cache.file_sha256(file) == first
    assert model_cache.file_sha256(tmp_path / "link") == "0" * 64
    file.write_bytes(b"abd")
    assert model_cache.file_sha256(file) == "read again"


def test_a_hash_that_cannot_be_remembered_is_right_all_the_same(tmp_path: Path) -> None:
    """A folder where the file of hashes belongs can be read and written by nobody, root neither."""
    (tmp_path / "cache" / "sha256.json").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [model_cache.file_sha256(tmp_path / "w.bin") for _ in range(2)] == [wanted, wanted]


@pytest.mark.parametrize(
    ("name", "reason"), [("~nosuchuser/m", "no home folder is known for '~nosuchuser'"), ("m" * 300, "name too long")]
)
def test_a_name_that_no_folder_can_have_names_its_key(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        resolve_model(name, key="sample.teacher")
    assert caught.value.where == "sample.teacher"


def test_a_name_that_ollama_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifests" / "registry.ollama.ai" / "library").mkdir(parents=True)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    with pytest.raises(UserError, match="Ollama has no model mmm"):
        resolve_model(f"ollama:{'m' * 300}")


def _break(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "pickle":
            weights.rename(folder / "pytorch_model.bin")
        case "adapter":
            (folder / "config.json").rename(folder / "adapter_config.json")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "header":
            weights.write_bytes(struct.pack("<Q", 2**40) + b"{}")
        case "shard":
            (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
        case "index":
            (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
        case "code":
            (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
        case "4-bit":
            quantisation = {"quantization_config": {"quant_method": "bitsandbytes"}}
            (folder / "config.json").write_text(json.dumps({**config, **quantisation}))
        case "json":
            (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no config", "config.json is missing"),
        ("no weights", "*.safetensors is missing"),
        ("pickle", "pickle"),
        ("adapter", "is an adapter, not a model"),
        ("cut", "is damaged: its header wants"),
        ("header", "is damaged: its header is cut short"),
        ("shard", "names model-00002-of-00002.safetensors, which is not there"),
        ("index", "holds a, which it does not"),
        ("code", "its own code"),
        ("4-bit", "quantised (bitsandbytes)"),
        ("json", "is no JSON"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(how: str, words: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", num_hidden_layers=1)
    _break(folder, how)
    with pytest.raises(UserError, match=re.escape(words)):
        resolve_model(str(folder))


def test_files_that_are_no_usable_gguf_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(UserError, match="is no GGUF"):
        resolve_model(str(tmp_path / "text.gguf"))
    write_gguf(save_tiny(tmp_path / "model", num_hidden_layers=1), tmp_path / "m.gguf", "f16")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is no whole GGUF"):
        hf_folder(resolve_model(str(tmp_path / "cut.gguf")))
    (tmp_path / "odd.gguf").write_bytes(data.replace(b"llama", b"mamba", 1))
    with pytest.raises(UserError, match="architecture 'mamba'"):
        hf_folder(resolve_model(str(tmp_path / "odd.gguf")))
    with pytest.raises(UserError, match="no model named"):
        resolve_model("./nowhere/model.gguf")


def test_a_hub_model_asks_for_safe_files_and_records_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = save_tiny(tmp_path / commit)
    asked: dict[str, Any] = {}

    def download(name: str, **arguments: Any) -> str:
        asked.update(arguments, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    source = resolve_model("owner/model", "main")
    assert (source.kind, source.revision, source.folder) == ("hub", commit, folder)
    assert (asked["name"], asked["revision"]) == ("owner/model", "main")
    assert {"*.safetensors", *_LICENCE_FILES} <= set(asked["allow_patterns"])  # what a push passes on must be there
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py", ".pt"))]


def test_a_hub_model_offline_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match="is not in the local cache"):
        resolve_model("owner/model-that-is-nowhere")


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="SSD_LITE_CACHE"):
        model_cache.cache_folder()
    with cache_in(shared_cache()) as folder:
        assert model_cache.cache_folder() == folder
