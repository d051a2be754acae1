"""Questions with an exact or numeric answer, `questions:FILE`: JSON Lines or parquet of `question, answer, id?`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import AnswerTest
from ssd_lite.problems.strict_json import read_objects
from ssd_lite.records import Problem

KEYS = ("id", "question", "answer")
# GSM8K's own form of an answer. The grader also finds answers that are given otherwise.
REQUEST = 'Think step by step. Then write the final answer alone on the last line, after "#### ".'
_NEEDED = 'A question needs "question" and "answer".'


def load_questions(path: Path) -> list[Problem]:
    """Read a file of questions, in its order; a question without an id takes the file's name and its line.

    The answer of GSM8K's form is what stands after its last `####`; any other is a number or a short text as a whole.
    Keys beside `id`, `question` and `answer` are left out. UserError with file and line for what is wrong.
    """
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for number, row in _rows(path):
        where = f"{path}:{number}"
        problem = _problem(row, f"{path.stem}/{number}", where)
        if problem.id in line_of:
            what = f"id {problem.id!r} was used before, in line {line_of[problem.id]}."
            raise UserError(what, where=where, next_step="Give every question its own id.")
        line_of[problem.id] = number
        problems.append(problem)
    if not problems:
        raise UserError("holds no question.", where=str(path), next_step=_NEEDED)
    return problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix != ".parquet":
        return read_objects(path)
    from ssd_lite.problems.parquet import read_rows

    return enumerate(read_rows(path, KEYS, needed=("question", "answer")), start=1)


def _problem(row: dict[str, Any], default_id: str, where: str) -> Problem:
    question, answer, name = row.get("question"), row.get("answer"), row.get("id")
    if not isinstance(question, str) or not question.strip():
        raise UserError("`question` must be a non-empty text.", where=where, next_step=_NEEDED)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = repr(answer)
    if not isinstance(answer, str) or not (value := answer.rpartition("####")[2].strip()):
        raise UserError("`answer` must be a number or a non-empty text.", where=where, next_step=_NEEDED)
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise UserError("`id` must be a non-empty text.", where=where, next_step="Write one, or leave the key out.")
    return Problem(
        id=name or default_id,
        messages=({"role": "user", "content": f"{question.strip()}\n\n{REQUEST}"},),
        test=AnswerTest(value),
        extra={"statement": question},
    )
