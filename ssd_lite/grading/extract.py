"""The program in a completion: thinking text removed, then the last fenced block (or the first, or the whole text)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Block = Literal["last", "first", "whole"]
Fence = Literal["closed", "unclosed", "none"]
_FENCE = re.compile(r"^[ \t]{0,3}(?P<mark>`{3,}|~{3,})(?P<rest>[^\n]*)$")
_OPEN, _CLOSE = re.compile(r"<think(?:ing)?>", re.I), re.compile(r"</think(?:ing)?>", re.I)
_OPEN_AT_THE_END = re.compile(rf"(?:{_OPEN.pattern})\s*\Z", re.I)


@dataclass(frozen=True)
class Extraction:
    """The program's text, None where the completion has none, and how its fence ended."""

    program: str | None
    fence: Fence


def extract_program(completion: str, *, block: Block = "last", opened_thinking: bool = False) -> Extraction:
    """Take the program out of a completion.

    A block whose fence never closes counts, as unclosed: a completion cut off at the token cap is graded for what it
    says. Without any fence there is no program, except with `block="whole"`, which takes all of the text. With
    `opened_thinking` the prompt has opened the thinking: without a closing tag all of the completion is thinking.
    """
    answer = without_thinking(completion.replace("\r\n", "\n"), opened=opened_thinking)
    if block == "whole":
        return Extraction(answer if answer.strip() else None, "none")
    blocks = list(_fenced_blocks(answer))
    if not blocks:
        return Extraction(None, "none")
    text, closed = blocks[0] if block == "first" else blocks[-1]
    return Extraction(text, "closed" if closed else "unclosed")


def opens_thinking(prompt: str) -> bool:
    """Does a rendered prompt end with an open thinking tag, so that the completion starts inside the thinking?"""
    return _OPEN_AT_THE_END.search(prompt[-200:]) is not None


def without_thinking(text: str, *, opened: bool = False) -> str:
    """The text after the thinking: nothing of it where the thinking never ends.

    A chat template may open the thinking in the prompt (`opened`), so a lone closing tag ends thinking too.
    """
    end = max((close.end() for close in _CLOSE.finditer(text)), default=0)
    if opened and not end:
        return ""
    answer = text[end:]
    again = _OPEN.search(answer)
    return answer if again is None else answer[: again.start()]


def _fenced_blocks(text: str) -> list[tuple[str, bool]]:
    """`(text, closed)` of every fenced block, by the CommonMark rules: the closing fence is bare and not shorter."""
    blocks: list[tuple[str, bool]] = []
    mark, indent, lines = "", 0, [""]
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if not mark:
            if fence and not (fence["mark"][0] == "`" and "`" in fence["rest"]):
                mark, indent, lines = fence["mark"], len(line) - len(line.lstrip()), []
        elif fence and fence["mark"].startswith(mark) and not fence["rest"].strip():
            blocks.append(("\n".join(lines) + "\n", True))
            mark = ""
        else:
            lines.append(_dedented(line, indent))
    if mark:
        blocks.append(("\n".join(lines) + "\n", False))
    return blocks


def _dedented(line: str, indent: int) -> str:
    spaces = len(line) - len(line.lstrip(" "))
    return line[min(indent, spaces) :]
