"""From an adapter to a chat: the merge, export and chat stages on a tiny run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tiny_models import save_tiny

from ssd_lite.atomic import is_whole
from ssd_lite.engines.model_source import resolve_model
from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.chat import ChatOptions, Conversation, chat, visible
from ssd_lite.stages.export import export, export_folder, tuned_gguf
from ssd_lite.stages.merge import merge
from ssd_lite.stages.pages.model_card import write_card

pytest.importorskip("llama_cpp")
pytest.importorskip("peft")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose training is done."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("SSD_LITE_CACHE", str(tmp_path / "cache"))
    base = save_tiny(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nText.\n")
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"name": str(base)},
            "export": {"types": ["q8_0", "f16"]},
            "evaluate": {"max_new_tokens": 20},
        }
    )
    run = RunFolder.create(tmp_path / "run", recipe)
    torch.manual_seed(0)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], r=2))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    network.save_pretrained(run.adapter)
    recorded = {"name": str(base), "revision": None, "weights_sha256": resolve_model(str(base)).weights_sha256}
    (run.adapter / "ssd_lite_base.json").write_text(json.dumps(recorded))
    run.finish("train", {"steps": 3, "final_loss": 1.25}, 1.0)
    return run


def test_merge_writes_a_model_with_its_card_and_is_done_once(run: RunFolder) -> None:
    summary = merge(run)
    assert summary["changed_tensors"] == 2
    assert summary["base"]["license"] == "apache-2.0"
    assert resolve_model(str(run.merged)).weights_sha256 == summary["weights_sha256"]
    card = (run.merged / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for words in ("steps 3", "final_loss 1.25", "temperature 1.1, top-k 20", "Not measured.", "lora_r: 16"):
        assert words in card
    before = (run.merged / "model.safetensors").stat().st_mtime_ns
    assert merge(run) == summary
    assert (run.merged / "model.safetensors").stat().st_mtime_ns == before
    write_card(run, {"base": {"pass@1": 0.25}, "tuned": {"pass@1": 0.5, "problems": 90}})
    card = (run.merged / "README.md").read_text()
    assert "| | base | tuned |" in card
    assert "| pass@1 | 0.25 | 0.5 |" in card
    assert is_whole(run.merged)


def test_merge_killed_after_publishing_goes_on(run: RunFolder) -> None:
    summary = merge(run)
    manifest = run.manifest()
    del manifest["stages"]["merge"]
    run.manifest_file.write_text(json.dumps(manifest))
    assert merge(run) == summary


def test_merge_needs_training_and_the_same_base(run: RunFolder) -> None:
    base = Path(run.recipe.model.name)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="with other weights"):
        merge(run)
    assert not run.merged.exists()
    manifest = run.manifest()
    del manifest["stages"]["train"]
    run.manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="'train' is not done yet"):
        merge(run)


def test_export_of_a_run(run: RunFolder) -> None:
    merge(run)
    first = tuned_gguf(run, "q8_0")
    before = first.stat().st_mtime_ns
    summary = export(run)
    assert [file["path"] for file in summary["files"]] == ["gguf/tiny-q8_0.gguf", "gguf/tiny-f16.gguf"]
    assert first.stat().st_mtime_ns == before
    assert export(run) == summary
    beside = {"Modelfile", "SERVING.md", "tiny.preset.json"}
    assert {path.name for path in run.gguf.glob("[!.]*")} == {"tiny-f16.gguf", "tiny-q8_0.gguf", *beside}
    assert {summary[key] for key in ("modelfile", "guide", "preset")} == {f"gguf/{name}" for name in beside}
    text = (run.gguf / "Modelfile").read_text()
    for words in ("FROM ./tiny-q8_0.gguf", "TEMPLATE", "temperature 1.1", 'stop "<|im_end|>"', 'stop "<|endoftext|>"'):
        assert words in text


def test_a_gguf_of_other_weights_is_not_passed_off_as_this_models(run: RunFolder, tmp_path: Path) -> None:
    import shutil

    merge(run)
    other = tmp_path / "other" / Path(run.recipe.model.name).name
    shutil.copytree(run.merged, other)
    export_folder(Path(run.recipe.model.name), ["f16"], tmp_path / "out")
    with pytest.raises(UserError, match="not made from these weights"):
        export_folder(other, ["f16"], tmp_path / "out")


def test_export_of_a_folder_and_its_refusals(run: RunFolder, tmp_path: Path) -> None:
    base = Path(run.recipe.model.name)
    summary = export_folder(base, ["f16", "f16", "q4_0"], tmp_path / "out")
    assert [Path(file["path"]).name for file in summary["files"]] == ["base-f16.gguf", "base-q4_0.gguf"]
    assert summary["template"] is True
    with pytest.raises(UserError, match="no GGUF type 'q9'"):
        export_folder(base, ["q9"], tmp_path / "out")
    with pytest.raises(UserError, match="is an adapter, not a model"):
        export_folder(run.adapter, ["f16"], tmp_path / "out")


def test_chat_answers_one_prompt_the_same_way_for_a_seed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    merge(run)
    first = chat(run.path, ChatOptions(prompt="Hello", seed=3, threads=1))
    assert capsys.readouterr().out == visible(first) + "\n"
    assert first == chat(run.path, ChatOptions(prompt="Hello", seed=3, threads=1))
    assert first != chat(run.path, ChatOptions(prompt="Hello", seed=4, threads=1))
    assert first != chat(run.path, ChatOptions(prompt="Hello", seed=3, base=True, threads=1))
    assert chat(tuned_gguf(run, "q8_0"), ChatOptions(prompt="Hello", max_new_tokens=5, threads=1))


def test_chat_reads_until_the_end_of_input(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(run)
    asked: list[str] = []
    plain = Conversation.reply

    def reply(self: Conversation, text: str, *more: object) -> object:
        asked.append(text)
        return plain(self, text, *more)

    monkeypatch.setattr(Conversation, "reply", reply)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    chat(run.path, ChatOptions(threads=1))
    assert asked == ["one", "two"]


class _Words:
    """Stands for tokenizer and sampler: a token is a byte, 0 is the end; every reply is the same."""

    end_ids = (0,)
    context_length = 60

    def __init__(self, answer: bytes) -> None:
        self.answer, self.prompts = answer, []

    def render(self, messages: list[dict[str, str]]) -> tuple[str, list[int]]:
        text = "".join(message["content"] for message in messages)
        return text, list(text.encode())

    def decode(self, ids: list[int], *, skip_special: bool = False) -> str:
        return bytes(ids).decode(errors="replace")

    def stream(self, prompt: list[int], settings: object, seed: int) -> object:
        self.prompts.append((bytes(prompt).decode(), seed))
        yield from self.answer
        yield 0


def _conversation(answer: bytes) -> tuple[Conversation, _Words]:
    from ssd_lite.records import SamplingSettings

    words = _Words(answer)
    return Conversation(words, words, SamplingSettings(1.0, 20, 0.8, 0.0, 20), 7), words  # type: ignore[arg-type]


def test_a_character_of_several_tokens_comes_whole() -> None:
    conversation, _ = _conversation("né🚀!".encode())
    assert [piece for piece in conversation.reply("x") if piece] == ["n", "é", "🚀", "!"]


def test_history_is_sent_and_the_oldest_turns_are_forgotten() -> None:
    conversation, words = _conversation(b"ok")
    for text in ("first question..", "second question.", "third question.."):
        assert "".join(conversation.reply(text)) == "ok"
    assert [prompt for prompt, _ in words.prompts] == [
        "first question..",
        "first question..oksecond question.",
        "second question.okthird question..",
    ]
    assert [seed for _, seed in words.prompts] == [8, 9, 10]
    with pytest.raises(UserError, match="41 tokens"):
        list(conversation.reply("x" * 41))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_a_stopped_reply_stays_in_the_history() -> None:
    conversation, _ = _conversation(b"abcdef")
    pieces: list[str] = []
    for piece in conversation.reply("q", lambda: len(pieces) >= 2):
        pieces.append(piece)
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    assert "".join(pieces) == "ab"


def test_terminal_escapes_are_made_visible() -> None:
    assert visible("a\x1b[31mb\n\tc\x07") == "a\\x1b[31mb\n\tc\\x07"
