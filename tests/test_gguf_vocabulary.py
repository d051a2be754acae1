"""Vocabularies for GGUF: SentencePiece with and without tokenizer.model, end tokens, flags, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_gguf import write_gguf
from reference_converter import tokenizers_folder
from tiny_architectures import CASES, save_case
from tiny_tokenizers import NASTY, byte_level, corpus, from_pieces, write_tokenizer

from ssd_lite.engines.checks.gguf_check import check_vocabulary
from ssd_lite.engines.gguf.quantise import Vocabulary
from ssd_lite.engines.gguf.read import open_gguf
from ssd_lite.engines.gguf.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, read_pieces
from ssd_lite.engines.gguf.vocabulary import read_vocabulary
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError

pytest.importorskip("llama_cpp")
SPECIALS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def _v3() -> Path:
    return tokenizers_folder() / "mistral_common" / "data" / "mistral_instruct_tokenizer_240323.model.v3"


def _write(folder: Path, spaces: str, **settings: Any) -> dict[str, Any]:
    """A folder with Mistral's tokenizer.json alone; the settings of a model with its vocabulary."""
    value = from_pieces(_v3(), specials=SPECIALS, spaces=spaces)
    write_tokenizer(folder, value, bos="<s>", eos="</s>", kind="LlamaTokenizer", unk_token="<unk>", **settings)
    return {"vocab_size": len(value["model"]["vocab"])}


def test_pieces_of_a_published_sentencepiece_model() -> None:
    pieces = read_pieces(_v3())
    assert len(pieces) == 32768
    assert pieces[0] == ("<unk>", 0.0, UNKNOWN)
    assert pieces[2] == ("</s>", 0.0, CONTROL)
    assert [text for text, _, kind in pieces if kind == BYTE] == [f"<0x{byte:02X}>" for byte in range(256)]
    scores = {text: score for text, score, kind in pieces if kind == NORMAL}
    assert [scores[text] for text in ("▁t", "in", "▁▁")] == [-2.0, -3.0, -1e9]


def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(_v3().read_bytes()[:5000] + b"\xff\xff")
    with pytest.raises(UserError, match="no SentencePiece model"):
        read_pieces(file)


@pytest.mark.parametrize("spaces", ["legacy", "none"])
def test_scores_from_the_merges_tokenise_as_those_of_the_model_file(spaces: str, tmp_path: Path) -> None:
    folder = save_case(tmp_path / "model", CASES["mistral" if spaces == "legacy" else "gemma3"])
    (folder / "tokenizer.model").unlink()
    write_gguf(folder, tmp_path / "m.gguf", "bf16")
    tokenizer, view = ChatTokenizer.load(folder), Vocabulary(tmp_path / "m.gguf")
    texts = [*NASTY, *(corpus()[start : start + 2000] for start in range(0, 40000, 2000))]
    differing = [text for text in texts if view.tokenise(text, parse_special=True) != tokenizer.encode(text)]
    view.close()
    assert differing == []
    check_vocabulary(tmp_path / "m.gguf", folder)


def test_a_model_file_with_other_pieces_than_tokenizer_json_is_not_used(tmp_path: Path) -> None:
    config = _write(tmp_path, "legacy")
    without = read_vocabulary(tmp_path, config)
    (tmp_path / "tokenizer.model").write_bytes(_v3().read_bytes())
    scores = read_vocabulary(tmp_path, config).scores
    assert scores != without.scores
    v1 = tokenizers_folder() / "mistral_common" / "data" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(v1.read_bytes())
    assert read_vocabulary(tmp_path, config) == without


def test_where_a_space_goes_first(tmp_path: Path) -> None:
    seen = {}
    for spaces in ("legacy", "none", "first"):
        config = _write(tmp_path / spaces, spaces)
        seen[spaces] = read_vocabulary(tmp_path / spaces, config).add_space_prefix
        _edit(tmp_path / spaces / "tokenizer_config.json", lambda value: value.pop("chat_template"))
        seen[spaces + ", no template"] = read_vocabulary(tmp_path / spaces, config).add_space_prefix
    assert seen == {
        "legacy": True,
        "legacy, no template": True,
        "none": False,
        "none, no template": False,
        # Prompts of a chat begin with a control token, behind which this scheme puts no space.
        "first": False,
        "first, no template": True,
    }


def test_a_space_at_the_very_beginning_only_fits_prompts_of_a_chat(tmp_path: Path) -> None:
    folder = save_case(tmp_path / "model", CASES["mistral"])
    value = from_pieces(_v3(), specials=SPECIALS, spaces="first")
    write_tokenizer(folder, value, bos="<s>", eos="</s>", kind="LlamaTokenizer", unk_token="<unk>")
    write_gguf(folder, tmp_path / "m.gguf", "bf16")
    tokenizer, view = ChatTokenizer.load(folder), Vocabulary(tmp_path / "m.gguf")
    for text in ("<s>[INST] Hello there[/INST]", "<s>[INST]Hello[/INST] Yes.</s>[INST] 2 + 2?[/INST]"):
        assert view.tokenise(text, parse_special=True) == tokenizer.encode(text)
    assert view.tokenise("Hello", parse_special=True) != tokenizer.encode("Hello")
    view.close()
    check_vocabulary(tmp_path / "m.gguf", folder)


def test_every_end_token_stops_llama_cpp(tmp_path: Path) -> None:
    """Three of five have a place of their own; the other two must be those that llama.cpp knows by their texts."""
    ends = ("<|stop|>", "<|eot_id|>", "<|endoftext|>", "<|over|>")
    value = byte_level("qwen2", ("<|fin|>", *ends))
    folder = save_case(tmp_path / "model", CASES["qwen2"])
    write_tokenizer(folder, value, bos=None, eos="<|fin|>", ends=ends)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    tokenizer, view = ChatTokenizer.load(folder), Vocabulary(tmp_path / "m.gguf")
    assert len(tokenizer.end_ids) == 5
    assert all(view.is_end(token) for token in tokenizer.end_ids)
    view.close()


def test_types_of_added_tokens(tmp_path: Path) -> None:
    value = byte_level("llama-bpe", ("<|end|>",), extra=("<think>", "<|looks|>", "<unused7>", "a▁b"))
    first = value["added_tokens"][0]["id"]
    write_tokenizer(tmp_path, value, bos=None, eos="<|end|>")
    vocabulary = read_vocabulary(tmp_path, {"vocab_size": first + 7})
    assert list(zip(vocabulary.tokens[first:], vocabulary.types[first:], strict=True)) == [
        ("<|end|>", CONTROL),
        ("<think>", USER_DEFINED),
        ("<|looks|>", CONTROL),
        ("<unused7>", CONTROL),
        ("a b", USER_DEFINED),
        (f"[PAD{first + 5}]", 5),
        (f"[PAD{first + 6}]", 5),
    ]


def test_an_added_token_that_the_weights_lack_is_left_out_a_vocabulary_beyond_them_is_refused(tmp_path: Path) -> None:
    value = byte_level("llama-bpe", ("<|end|>", "<|image|>"))
    write_tokenizer(tmp_path, value, bos=None, eos="<|end|>")
    size = value["added_tokens"][0]["id"] + 1
    assert read_vocabulary(tmp_path, {"vocab_size": size}).tokens[-1] == "<|end|>"
    with pytest.raises(UserError, match="vocab_size is 300"):
        read_vocabulary(tmp_path, {"vocab_size": 300})


def test_special_ids_of_config_json_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    value = byte_level("qwen2", ("<|end|>", "<|pad|>"))
    end, pad = (entry["id"] for entry in value["added_tokens"])
    write_tokenizer(tmp_path, value, bos=None, eos="<|end|>")
    config = {"vocab_size": pad + 1, "bos_token_id": end, "pad_token_id": pad, "eos_token_id": [end, pad]}
    special = read_vocabulary(tmp_path, config).special
    assert special == {"bos": end, "pad": pad, "eos": end, "eot": pad}


def _metaspace_that_cuts(value: dict[str, Any]) -> None:
    value["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    value["normalizer"] = None


def _precompiled(value: dict[str, Any]) -> None:
    value["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, value["normalizer"]["normalizers"][1]]}


def _byte_missing(value: dict[str, Any]) -> None:
    del value["model"]["vocab"]["<0x0A>"]


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "cut": (_metaspace_that_cuts, "Metaspace that cuts words"),
    "normaliser": (_precompiled, "normalizer NFKC"),
    "bytes": (_byte_missing, "255 of 256 byte tokens"),
    "split": (lambda value: value.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer"),
    "skips": (lambda value: value["model"].update(ignore_merges=True), "ignore_merges"),
    "unigram": (lambda value: value["model"].update(type="Unigram"), "kind Unigram"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sentencepiece_that_llama_cpp_would_read_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    config = _write(tmp_path, "legacy")
    change, words = REFUSED[case]
    _edit(tmp_path / "tokenizer.json", change)
    with pytest.raises(UserError, match=words) as refused:
        read_vocabulary(tmp_path, config)
    assert "convert_hf_to_gguf.py" in str(refused.value.next_step)


@pytest.mark.slow
def test_the_check_finds_scores_that_merge_otherwise(tmp_path: Path) -> None:
    """What check_vocabulary is for: the same pieces with scores turned round."""
    folder = save_case(tmp_path / "model", CASES["mistral"])
    (folder / "tokenizer.model").unlink()
    _edit(folder / "tokenizer.json", lambda value: value["model"]["merges"].reverse())
    write_gguf(folder, tmp_path / "m.gguf", "bf16")
    turned = open_gguf(tmp_path / "m.gguf").fields["tokenizer.ggml.scores"]
    assert turned[300] != -41.0
    _edit(folder / "tokenizer.json", lambda value: value["model"]["merges"].reverse())
    with pytest.raises(UserError, match="otherwise than the model's tokenizer"):
        check_vocabulary(tmp_path / "m.gguf", folder)
