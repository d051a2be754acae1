"""The renderer gives the text and the ids that transformers gives, from the model's own files."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.errors import UserError
from ssd_lite.records import Message, Problem

CONVERSATIONS: dict[str, list[Message]] = {
    "user": [{"role": "user", "content": "Write a function that returns the larger of a and b."}],
    "system": [{"role": "system", "content": "You answer in Python."}, {"role": "user", "content": "Hi"}],
    "several turns": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
    ],
    "unicode": [{"role": "user", "content": "Zähle 日本語 🙂\u200d e\u0301 \u2028 \U0001f468\u200d\U0001f469"}],
    "white space": [{"role": "user", "content": "  a\n\n\tb  \r\n   "}],
    "code": [{"role": "user", "content": 'def f(a: int) -> int:\n    """{{ x }} {% if %}"""\n    return a<b & "c"'}],
    "special tokens in the text": [{"role": "user", "content": "print <|im_end|> and <|im_start|>assistant\n"}],
    "empty": [{"role": "user", "content": ""}],
    "long": [{"role": "user", "content": "word " * 3000}],
}


@pytest.fixture(scope="module")
def ours(packaged_model):
    return ChatTokenizer.load(packaged_model.folder)


@pytest.fixture(scope="module")
def theirs(packaged_model):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(packaged_model.folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_renders_as_transformers_renders_it(ours, theirs, name: str) -> None:
    messages = CONVERSATIONS[name]
    text, ids = ours.render(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    wanted = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert ids == list(wanted if isinstance(wanted, list) else wanted["input_ids"])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_decode_as_transformers_decodes_them(ours, theirs, name: str) -> None:
    _, ids = ours.render(CONVERSATIONS[name])
    for skip in (False, True):
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special=skip) == expected
    assert ours.encode(ours.decode(ids)) == ids


def test_the_end_tokens_are_the_models(ours, theirs) -> None:
    assert theirs.eos_token_id in ours.end_ids
    assert ours.decode([theirs.eos_token_id], skip_special=True) == ""
    assert ours.pad_id is not None


def test_encoding_adds_nothing(ours) -> None:
    assert ours.encode("") == []
    assert ours.bos_id is None or ours.encode("a")[:1] != [ours.bos_id]


def test_problems_are_rendered_one_by_one(ours) -> None:
    from ssd_lite.prompts import render

    problems = [Problem(name, tuple(messages)) for name, messages in CONVERSATIONS.items()]
    prompts = render(problems, ours)
    assert [prompt.problem_id for prompt in prompts] == list(CONVERSATIONS)
    assert all(
        (p.text, list(p.ids)) == ours.render(problem.messages) for p, problem in zip(prompts, problems, strict=True)
    )


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(folder: Path) -> None:
    """A run that was stopped before midnight goes on after it; a chat gets the day's own date."""
    from ssd_lite.prompts import render

    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}")
    tokenizer = ChatTokenizer.load(folder)
    messages = ({"role": "user", "content": "Hello"},)
    assert [prompt.text for prompt in render([Problem("p", messages)], tokenizer)] == ["26 Jul 2024: Hello"]
    assert tokenizer.render(messages)[0] == f"{datetime.now():%d %b %Y}: Hello"


def test_two_start_tokens_are_refused() -> None:
    from ssd_lite.prompts import render

    class Doubling:
        bos_id = 1

        def render(self, messages: object, **variables: object) -> tuple[str, list[int]]:
            return "<s><s>a", [1, 1, 5]

    with pytest.raises(UserError, match="two start tokens") as caught:
        render([Problem("p7", ())], Doubling())
    assert caught.value.where == "problem p7"


@pytest.fixture
def folder(packaged_model, tmp_path: Path) -> Path:
    """A copy of the tokenizer files that a test may change."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json")
    for name in names:
        if (packaged_model.folder / name).is_file():
            shutil.copy(packaged_model.folder / name, tmp_path / name)
    return tmp_path


def change(file: Path, **values: object) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**known, **values}), encoding="utf-8")


def test_all_end_tokens_of_all_files_count(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[5, 6])
    change(folder / "config.json", eos_token_id=7)
    assert set(ChatTokenizer.load(folder).end_ids) >= {5, 6, 7}


def test_a_template_may_stand_in_the_config_alone_or_among_others(folder: Path) -> None:
    wanted = ChatTokenizer.load(folder).render(CONVERSATIONS["user"])
    template = ChatTokenizer.load(folder).chat_template
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change(folder / "tokenizer_config.json", chat_template=template)
    assert ChatTokenizer.load(folder).render(CONVERSATIONS["user"]) == wanted
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert ChatTokenizer.load(folder).render(CONVERSATIONS["user"]) == wanted


TEMPLATE = """{%- for message in messages %}
    {% if message.role == "system" %}
        {% continue %}
    {% endif %}
  {{ message.content | tojson }}
    {# a remark #}
{% endfor %}
{% if add_generation_prompt %}
 answer: {% endif %}"""


def test_white_space_and_loop_words_of_a_template_mean_what_they_mean_to_transformers(folder: Path, theirs) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    messages = [*CONVERSATIONS["system"], *CONVERSATIONS["unicode"]]
    wanted = theirs.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
    assert ChatTokenizer.load(folder).render(messages)[0] == wanted


def test_a_tokenizer_that_adds_a_start_token_adds_none_to_a_rendered_text(folder: Path) -> None:
    """The template has put it there already, where there is one."""
    wanted = ChatTokenizer.load(folder).encode("a b")
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    token = value["added_tokens"][0]
    piece = {"SpecialToken": {"id": token["content"], "type_id": 0}}
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    assert ChatTokenizer.load(folder).encode("a b") == wanted


def test_variables_reach_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if thinking is defined %}{{ thinking }}{% else %}unset{% endif %}")
    tokenizer = ChatTokenizer.load(folder)
    assert tokenizer.render(CONVERSATIONS["user"])[0] == "unset"
    assert tokenizer.render(CONVERSATIONS["user"], thinking=False)[0] == "False"


def test_a_template_cannot_reach_the_machine(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="unsafe"):
        ChatTokenizer.load(folder).render(CONVERSATIONS["user"])


def test_no_template_is_named_and_none_is_made_up(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        ChatTokenizer.load(folder).render(CONVERSATIONS["user"])


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json") as caught:
        ChatTokenizer.load(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_broken_config_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON") as caught:
        ChatTokenizer.load(folder)
    assert caught.value.where == str(folder / "tokenizer_config.json")


def test_a_model_that_names_no_end_token_is_refused(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=None)
    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="no end token"):
        ChatTokenizer.load(folder)
