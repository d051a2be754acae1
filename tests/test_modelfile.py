"""The Ollama template is learnt from the jinja template, or left out."""

from __future__ import annotations

import re

import pytest

from ssd_lite.recipe_section import Decoding
from ssd_lite.stages.exports.modelfile import TurnFormat, learn_format, modelfile

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nDefault<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% if messages[0].role != 'system' %}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|>{% endif %}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'system' %}Today Date: 26 Jul 2024\n\n{% endif %}"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
SHOUTING = "{% for m in messages %}[{{ m.role }}] {{ m.content | upper }}{% endfor %}"
COUNTING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<{{ loop.index }}>{% endfor %}<assistant>"


def _render(template: str, messages: object) -> str:
    jinja2 = pytest.importorskip("jinja2")
    text: str = jinja2.Environment(keep_trailing_newline=True).from_string(template).render(messages=messages)
    return text


def _go(template: str, messages: list[dict[str, str]]) -> str:
    """Run the Go template of `TurnFormat.ollama` by translating its few constructs into jinja."""
    for pattern, jinja in (
        (r"\{\{ range \$i, \$m := \.Messages \}\}", "{% for m in messages %}"),
        (r'\{\{ if eq \$m\.Role "system" \}\}', "{% if m.role == 'system' %}"),
        (r'\{\{ else if eq \$m\.Role "user" \}\}', "{% elif m.role == 'user' %}"),
        (r"\{\{ if \$i \}\}", "{% if loop.index0 %}"),
        (r"\{\{ else \}\}", "{% else %}"),
        (r"\{\{ \$m\.Content \}\}\{\{ end \}\}", "{{ m.content }}{% endfor %}"),
        (r"\{\{ end \}\}", "{% endif %}"),
    ):
        template = re.sub(pattern, lambda _, new=jinja: new, template)
    return _render(template, messages)


def _conversation(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"text {index} of {role}"} for index, role in enumerate(roles)]


@pytest.mark.parametrize("jinja", [CHATML, LLAMA3])
@pytest.mark.parametrize(
    "roles", [("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user")]
)
def test_the_learnt_template_prints_what_the_model_wants(jinja: str, roles: tuple[str, ...]) -> None:
    learnt = learn_format(lambda messages: _render(jinja, messages), None)
    assert learnt is not None
    assert _go(learnt.ollama(), _conversation(*roles)) == _render(jinja, _conversation(*roles))


def test_bos_is_left_out_where_the_runtime_adds_it() -> None:
    learnt = learn_format(lambda messages: _render(LLAMA3, messages), "<|begin_of_text|>")
    assert learnt is not None
    assert "<|begin_of_text|>" not in learnt.ollama()


@pytest.mark.parametrize("jinja", [SHOUTING, COUNTING, "{{ nothing.at.all }}", "{{ messages[5].content }}"])
def test_a_template_of_another_shape_is_left_out(jinja: str) -> None:
    assert learn_format(lambda messages: _render(jinja, messages), None) is None
    text = modelfile("m.gguf", None, ["<|end|>"], None)
    assert "TEMPLATE" not in text
    assert "# The chat template" in text


def test_the_text_of_a_modelfile() -> None:
    form = TurnFormat("<s>", "<u>", "<u>", "<a>", "<a>")
    lines = modelfile("run-q8_0.gguf", form, ["<|im_end|>", "<|endoftext|>"], Decoding(temperature=1.1)).splitlines()
    assert lines[0] == "FROM ./run-q8_0.gguf"
    assert lines[2:] == [
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER temperature 1.1",
        "PARAMETER top_k 20",
        "PARAMETER top_p 0.8",
        "PARAMETER min_p 0",
        "PARAMETER repeat_penalty 1",
    ]
