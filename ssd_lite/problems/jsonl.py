"""The tool's own problem format: JSON Lines of `id, prompt|messages, tests?, difficulty?, golden?, limits?`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast, get_args

from ssd_lite.errors import UserError
from ssd_lite.problem_tests import Test, read_test
from ssd_lite.problems.strict_json import read_objects
from ssd_lite.records import Difficulty, Limits, Message, Problem

KEYS = ("id", "prompt", "messages", "tests", "difficulty", "golden", "limits")
ROLES = ("system", "user", "assistant")
LIMIT_KEYS = ("cpu_s", "wall_s", "memory_mib", "output_mib")


def load_jsonl(path: Path) -> list[Problem]:
    """Read a problem file, in its order. UserError with file and line for the first thing that is wrong in it."""
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for number, value in read_objects(path):
        where = f"{path}:{number}"
        problem = read_problem(value, where)
        if problem.id in line_of:
            what = f"id {problem.id!r} was used before, in line {line_of[problem.id]}."
            raise UserError(what, where=where, next_step="Give every problem its own id.")
        line_of[problem.id] = number
        problems.append(problem)
    if not problems:
        raise UserError("holds no problem.", where=str(path), next_step='Write one object a line: {"id", "prompt"}.')
    return problems


def read_problem(value: dict[str, Any], where: str) -> Problem:
    """One problem from its JSON object; `where` (file and line) leads every UserError."""
    _refuse_unknown(value, KEYS, where)
    problem_id = value.get("id")
    if not isinstance(problem_id, str) or not problem_id.strip():
        raise UserError(f"`id` must be a non-empty string, {_got(value, 'id')}.", where=where, next_step=_needed())
    return Problem(
        id=problem_id,
        messages=_messages(value, where),
        test=_test(value, where),
        difficulty=_difficulty(value, where),
        golden=_golden(value, where),
        limits=_limits(value, where),
    )


def check_messages(value: object, where: str) -> tuple[Message, ...]:
    """A chat as a tuple of `{role, content}`: known roles, non-empty texts, the last one from the user."""
    if not isinstance(value, list) or not value:
        raise UserError("`messages` must be a non-empty list.", where=where, next_step=_needed())
    chat: list[Message] = []
    for place, item in enumerate(value):
        if not isinstance(item, dict) or set(item) != {"role", "content"}:
            raise UserError(
                f"messages[{place}] must be an object with exactly `role` and `content`.",
                where=where,
                next_step='Write {"role": "user", "content": "..."}.',
            )
        role, content = item["role"], item["content"]
        if role not in ROLES:
            what = f"messages[{place}].role is {role!r}."
            raise UserError(what, where=where, next_step=f"Use one of {', '.join(ROLES)}.")
        if not isinstance(content, str) or not content.strip():
            what = f"messages[{place}].content must be a non-empty string."
            raise UserError(what, where=where, next_step="Write the message, or drop it.")
        chat.append({"role": role, "content": content})
    if chat[-1]["role"] != "user":
        what = f"the last message is from the {chat[-1]['role']}."
        raise UserError(what, where=where, next_step="End with the user's message: the model answers it.")
    return tuple(chat)


def _messages(value: dict[str, Any], where: str) -> tuple[Message, ...]:
    if ("prompt" in value) == ("messages" in value):
        what = "has both `prompt` and `messages`" if "prompt" in value else "has neither `prompt` nor `messages`"
        raise UserError(f"{what} (keys found: {', '.join(value) or 'none'}).", where=where, next_step=_needed())
    if "messages" in value:
        return check_messages(value["messages"], where)
    prompt = value["prompt"]
    if not isinstance(prompt, str):
        raise UserError(f"`prompt` must be a string, {_got(value, 'prompt')}.", where=where, next_step=_needed())
    if not prompt.strip():
        raise UserError("`prompt` is empty.", where=where, next_step="Write the prompt, or remove the line.")
    return ({"role": "user", "content": prompt},)


def _test(value: dict[str, Any], where: str) -> Test | None:
    tests = value.get("tests")
    if tests is None:
        return None
    if not isinstance(tests, dict):
        what = f"`tests` must be an object, {_got(value, 'tests')}."
        raise UserError(what, where=where, next_step='Write {"kind": "functional" | "stdin" | "script", ...}.')
    entry_point = tests.get("entry_point")
    if not isinstance(tests.get("setup", ""), str) or not (entry_point is None or isinstance(entry_point, str)):
        what = "`setup` and `entry_point` of tests must be strings."
        raise UserError(what, where=where, next_step="Mend tests.")
    try:
        return read_test(tests)
    except ValueError as error:
        raise UserError(f"tests: {error}.", where=where, next_step="See docs/problems.md for the format.") from error


def _difficulty(value: dict[str, Any], where: str) -> Difficulty | None:
    difficulty = value.get("difficulty")
    if difficulty is not None and difficulty not in get_args(Difficulty):
        what = f"`difficulty` is {difficulty!r}."
        raise UserError(what, where=where, next_step=f"Use one of {', '.join(get_args(Difficulty))}.")
    return cast("Difficulty | None", difficulty)


def _golden(value: dict[str, Any], where: str) -> str | None:
    golden = value.get("golden")
    if golden is None:
        return None
    if not isinstance(golden, str) or not golden.strip():
        raise UserError("`golden` must be a program.", where=where, next_step="Write it, or leave the key out.")
    return golden


def _limits(value: dict[str, Any], where: str) -> Limits | None:
    limits = value.get("limits")
    if limits is None:
        return None
    if not isinstance(limits, dict):
        what = f"`limits` must be an object, {_got(value, 'limits')}."
        raise UserError(what, where=where, next_step=f"Use {', '.join(LIMIT_KEYS)}.")
    _refuse_unknown(limits, LIMIT_KEYS, where, inside="limits.")
    try:
        return Limits(**limits)
    except ValueError as error:
        raise UserError(f"{error}.", where=where, next_step="Mend this limit.") from error


def _refuse_unknown(value: dict[str, Any], known: Iterable[str], where: str, inside: str = "") -> None:
    names = tuple(known)
    for key in value:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            advice = f"Did you mean `{inside}{close[0]}`?" if close else f"Known keys: {', '.join(names)}."
            raise UserError(f"unknown key `{inside}{key}`.", where=where, next_step=advice)


def _got(value: dict[str, Any], key: str) -> str:
    if key in value:
        return f"got {value[key]!r:.60}"
    return f"keys found: {', '.join(value) or 'none'}"


def _needed() -> str:
    return 'A problem needs "id" and "prompt" (or "messages").'
