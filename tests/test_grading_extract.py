"""Programs are taken out of completions: fences, thinking text, unclosed blocks."""

import pytest

from ssd_lite.grading.extract import extract_program, without_thinking

TWO = "First:\n```python\na = 1\n```\nBetter:\n```python\na = 2\n```\nDone."


@pytest.mark.parametrize(
    ("text", "block", "program", "fence"),
    [
        (TWO, "last", "a = 2\n", "closed"),
        (TWO, "first", "a = 1\n", "closed"),
        ("a = 3", "whole", "a = 3", "none"),
        ("a = 3", "last", None, "none"),
        ("", "whole", None, "none"),
        ("```python\nprint(1)", "last", "print(1)\n", "unclosed"),
        ("```\r\nprint(1)\r\n```", "last", "print(1)\n", "closed"),
        ("````python\ns = '''\n```\n'''\n````", "last", "s = '''\n```\n'''\n", "closed"),
        ("~~~py\nx\n~~~", "last", "x\n", "closed"),
        ("  ```python\n  x = 1\n  if x:\n      y = 2\n  ```", "last", "x = 1\nif x:\n    y = 2\n", "closed"),
        ("Use `x` and ```inline``` text.", "last", None, "none"),
        ("<think>```python\nbad\n```</think>\n```python\ngood\n```", "last", "good\n", "closed"),
        ("```python\nbad\n```</think>\n```python\ngood\n```", "first", "good\n", "closed"),
        ("<think>```python\nbad\n```", "last", None, "none"),
        ("```python\n```", "last", "\n", "closed"),
    ],
)
def test_the_program_and_its_fence(text, block, program, fence):
    found = extract_program(text, block=block)
    assert (found.program, found.fence) == (program, fence)


def test_thinking_that_never_ends_leaves_what_stood_before_it():
    assert without_thinking("before <think> and so on") == "before "
    assert without_thinking("a <think>b</think> c <think>d</think> e") == " e"
