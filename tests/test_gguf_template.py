"""The chat template inside a GGUF: equal to the model's own, or the export stops and says where it differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from plain_gguf import write_gguf
from tiny_models import save_tiny

from ssd_lite.engines.checks.gguf_template import check_templates, conversations
from ssd_lite.errors import UserError

pytest.importorskip("llama_cpp")
# A template that treats a system message, earlier thoughts and the switch for thinking each in its own way.
THINKING = (
    "{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{%- for m in messages if m.role != 'system' %}"
    "{%- set text = m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content %}"
    "{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}[assistant]"
)
WITH_BOS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]"


def model(folder: Path, template: str | None, **settings: object) -> Path:
    """A random model with this chat template and these keys in tokenizer_config.json."""
    save_tiny(folder)
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **settings}
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    file.write_text(json.dumps(config))
    return folder


def exported(folder: Path) -> Path:
    path = folder.with_suffix(".gguf")
    write_gguf(folder, path, "f16")
    return path


def patched(path: Path, before: str, after: str) -> Path:
    """The same GGUF with another text of the same length in its metadata."""
    data = path.read_bytes()
    assert len(before) == len(after)
    assert data.count(before.encode()) == 1
    path.write_bytes(data.replace(before.encode(), after.encode()))
    return path


def test_six_conversations_that_differ() -> None:
    asked = conversations()
    assert len({one.name for one in asked}) == 6
    assert {one.messages[0]["role"] for one in asked} == {"system", "user"}
    assert [one.variables for one in asked[-2:]] == [{"enable_thinking": True}, {"enable_thinking": False}]


@pytest.mark.parametrize(("template", "refused"), [(THINKING, 0), (NO_SYSTEM, 3)])
def test_an_export_prints_what_transformers_prints(tmp_path: Path, template: str, refused: int) -> None:
    folder = model(tmp_path / "m", template)
    found = check_templates([exported(folder)], folder)
    assert found is not None
    assert (found.equal, found.refused, found.extra_bos) == (6 - refused, refused, "")
    assert found.reference.startswith("transformers ")


def test_the_packaged_model(packaged_model) -> None:
    found = check_templates([packaged_model.gguf], packaged_model.folder)
    assert (found.equal, found.refused, found.extra_bos) == (6, 0, "")


def test_without_transformers_it_is_compared_with_our_own(tmp_path: Path, monkeypatch) -> None:
    import sys

    folder = model(tmp_path / "m", THINKING)
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = check_templates([exported(folder)], folder)
    assert (found.equal, found.reference) == (6, "this program's own renderer")


@pytest.mark.parametrize(
    ("before", "after", "conversation"),
    [
        ("enable_thinking is false", "enable_thinking is falsy", "thinking on"),  # a test that jinja does not know
        ("'<think>\\n\\n</think>\\n\\n'", "'<think>\\n\\n</think>\\n '", "thinking off"),
        ("split('</think>')[-1]", "split('</thank>')[-1]", "several turns"),
        ("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant ' }}", "one turn"),
    ],
)
def test_a_wrong_template_is_found_with_its_place(tmp_path: Path, before: str, after: str, conversation: str) -> None:
    folder = model(tmp_path / "m", THINKING)
    with pytest.raises(UserError, match=f"for {conversation}") as error:
        check_templates([patched(exported(folder), before, after.ljust(len(before)))], folder)
    assert "Do not serve" in error.value.next_step


def test_a_missing_template_is_found_and_none_at_all_is_no_error(tmp_path: Path) -> None:
    bare = model(tmp_path / "bare", None)
    path = exported(bare)
    assert check_templates([path], bare) is None
    talking = shutil.copytree(bare, tmp_path / "talking")
    (talking / "chat_template.jinja").write_text(WITH_BOS)
    with pytest.raises(UserError, match="holds no chat template"):
        check_templates([path], talking)


def with_bos(folder: Path, template: str, *, adds: bool) -> Path:
    """A model whose tokenizer puts bos in front of a text, or not."""
    model(folder, template, bos_token="<|im_start|>", add_bos_token=adds)
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    token = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    processor = {"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b]}
    value["post_processor"] = {**processor, "special_tokens": {"<|im_start|>": token}} if adds else None
    file.write_text(json.dumps(value))
    return folder


def test_a_bos_that_the_template_prints_and_llama_cpp_adds_stands_once(tmp_path: Path) -> None:
    folder = with_bos(tmp_path / "m", WITH_BOS, adds=True)
    found = check_templates([exported(folder)], folder)
    assert (found.equal, found.extra_bos) == (6, "")


@pytest.mark.parametrize("adds", [True, False])
def test_two_bos_stop_the_export(tmp_path: Path, adds: bool) -> None:
    folder = with_bos(tmp_path / "m", "{{ bos_token }}" + WITH_BOS, adds=adds)
    with pytest.raises(UserError, match=r"two <\|im_start\|> \(bos\)"):
        check_templates([exported(folder)], folder)


def test_a_bos_that_llama_cpp_alone_adds_is_named(tmp_path: Path) -> None:
    folder = with_bos(tmp_path / "m", WITH_BOS.removeprefix("{{ bos_token }}"), adds=True)
    assert check_templates([exported(folder)], folder).extra_bos == "<|im_start|>"


# Templates in the shape of each family's own, without its tools.
_HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no system') }}"
    "{% endif %}{% endfor %}"
)
_TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)
_TAGS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
FAMILIES = {
    "llama3": _HEADERS,
    "smollm3": _CHATML,
    "qwen3": _CHATML,
    "mistral": _INST,
    "mistral-tekken": _INST,
    "gemma3": _TURNS,
    "phi4": _TAGS,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_and_its_file_alone_gives_the_same_prompts(tmp_path: Path, name: str) -> None:
    """SentencePiece with and without a space in front, bos by template and tokenizer: no false alarm."""
    from tiny_architectures import CASES, save_case

    from ssd_lite.engines.tokenizer import ChatTokenizer

    folder = save_case(tmp_path / "m", CASES[name])
    (folder / "chat_template.jinja").write_text(FAMILIES[name])
    path = exported(folder)
    found = check_templates([path], folder)
    refused = 3 if FAMILIES[name] == _INST else 0
    assert (found.equal, found.refused, found.extra_bos) == (6 - refused, refused, "")
    own, file = ChatTokenizer.load(folder), ChatTokenizer.load(path)
    assert set(file.end_ids) >= set(own.end_ids)
    for conversation in conversations():
        if refused and conversation.messages[0]["role"] == "system":
            continue
        text, ids = own.render(conversation.messages)
        assert file.render(conversation.messages) == (text, ids)
        assert file.decode(ids, skip_special=True).strip() == own.decode(ids, skip_special=True).strip()
