"""An Ollama Modelfile: the chat template in Ollama's own language, every stop, the decoding of the tuned model.

The template is learnt from what the model's jinja template prints for marked conversations, and is only written if it
prints the same for others. Ollama would otherwise put a template of its own choice in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssd_lite.recipe_section import Decoding
from ssd_lite.records import Message

Render = Callable[[Sequence[Message]], str]
_MARKS = ("MARK-ONE", "MARK-TWO", "MARK-THREE", "MARK-FOUR")


@dataclass(frozen=True)
class TurnFormat:
    """The text around the turns of a conversation.

    `system` stands before a first system message, `first` before a first user message (a default system message
    included), `user` before every later user message, `assistant` before an answer, `answer` before the one to come.
    """

    system: str
    first: str
    user: str
    assistant: str
    answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """What the Ollama template gives for a conversation."""
        text = ""
        for index, message in enumerate(messages):
            match message["role"]:
                case "system":
                    text += self.system
                case "user":
                    text += self.user if index else self.first
                case _:
                    text += self.assistant
            text += message["content"]
        return text + self.answer

    def ollama(self) -> str:
        """The Go template."""
        user = f"{{{{ if $i }}}}{self.user}{{{{ else }}}}{self.first}{{{{ end }}}}"
        return (
            "{{ range $i, $m := .Messages }}"
            f'{{{{ if eq $m.Role "system" }}}}{self.system}'
            f'{{{{ else if eq $m.Role "user" }}}}{user}'
            f"{{{{ else }}}}{self.assistant}{{{{ end }}}}"
            f"{{{{ $m.Content }}}}{{{{ end }}}}{self.answer}"
        )


def learn_format(render: Render, bos: str | None) -> TurnFormat | None:
    """The turn format of a chat template, or None if it is not of this shape. `bos`, if given, is left out in front.

    `render` gives the prompt text of a conversation. A template that refuses a conversation may raise anything.
    """
    try:
        learnt = _learn(render)
        if learnt is None or not all(learnt.render(c) == render(c) for c in _conversations(learnt)):
            return None
    except Exception:  # the template is the model author's program: whatever it raises means "not of this shape"
        return None
    if bos:
        learnt = TurnFormat(
            learnt.system.removeprefix(bos),
            learnt.first.removeprefix(bos),
            learnt.user,
            learnt.assistant,
            learnt.answer,
        )
    texts = (learnt.system, learnt.first, learnt.user, learnt.assistant, learnt.answer)
    return None if any('"""' in text or "{{" in text for text in texts) else learnt


def _learn(render: Render) -> TurnFormat | None:
    system, user, answer, again = _MARKS
    whole = render(
        [_say("system", system), _say("user", user), _say("assistant", answer), _say("user", again)],
    )
    parts = _split(whole, _MARKS)
    alone = _split(render([_say("user", user)]), (user,))
    if parts is None or alone is None or parts[1] != parts[3]:
        return None
    return TurnFormat(system=parts[0], first=alone[0], user=parts[1], assistant=parts[2], answer=parts[4])


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        before, text = text.split(mark)
        parts.append(before)
    return [*parts, text]


def _say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _conversations(learnt: TurnFormat) -> list[list[Message]]:
    user, answer = _say("user", "Add 2 and 3.\n\n```python\nx = 1\n```"), _say("assistant", "It is 5.\nReally.")
    system = _say("system", "Be brief.")
    return [
        [user],
        [system, user],
        [user, answer, user],
        [system, user, answer, user],
        [user, answer, user, answer, user],
        [system, user, answer, user, answer, user],
    ]


def modelfile(
    gguf_name: str,
    form: TurnFormat | None,
    stops: Sequence[str],
    decoding: Decoding | None,
    context: int | None = None,
) -> str:
    """The text of a Modelfile for a GGUF in the same folder; `context` in tokens, None takes Ollama's few thousand."""
    lines = [f"FROM ./{gguf_name}"]
    if form is None:
        lines.append("# The chat template is not of a shape that is known here: Ollama takes the one in the GGUF.")
    else:
        lines.append(f'TEMPLATE """{form.ollama()}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    if decoding is not None:
        lines += [
            f"PARAMETER temperature {decoding.temperature}",
            f"PARAMETER top_k {decoding.top_k}",
            f"PARAMETER top_p {decoding.top_p}",
        ]
    min_p = decoding.min_p if decoding is not None else 0.0
    # Without these Ollama takes values of its own, which are another law.
    lines += [f"PARAMETER min_p {min_p:g}", "PARAMETER repeat_penalty 1"]
    lines += [] if context is None else [f"PARAMETER num_ctx {context}"]
    return "\n".join(lines) + "\n"
