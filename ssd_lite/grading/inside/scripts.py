"""Test code (asserts): record a golden solution's calls, replay the test on a program's values, or run it beside.

Recording and replaying run in processes that hold the test and the golden solution and never a program under test.
`run_script` is the weak way, for test code that cannot be split from the program.
"""

from __future__ import annotations

import ast
import builtins
import copy
import random
import types
from collections.abc import Callable
from typing import Any

from . import plain
from .program import Frames, load, load_before

SEED = 0


class Divergence(BaseException):
    """The test asked for another call than the one recorded: its arguments depend on earlier answers."""


class ProgramError(Exception):
    """Stands for an exception of the program whose type is not a built-in one."""


def run_record(request: dict[str, Any], module: types.ModuleType, frames: Frames) -> None:
    """Frames: `["v", i, [args, kwargs]]` for every call of the candidate, then `["v", i, "end"]`."""
    calls: list[tuple[Any, Any]] = []

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any, **named: Any) -> Any:
            calls.append((copy.deepcopy(list(arguments)), copy.deepcopy(named)))
            return function(*arguments, **named)

        return record

    try:
        _run_test(request, module, recorder)
        for index, (arguments, named) in enumerate(calls):
            if not frames.value(index, [arguments, named]):
                return
        frames.value(len(calls), "end")
    except BaseException as error:
        frames.exception(len(calls), error)


def run_replay(request: dict[str, Any], module: types.ModuleType, frames: Frames) -> None:
    """Run the test on given values of recorded calls. Frame: `["v", 0, "pass" | "wrong" | "diverged"]` or an error."""
    calls = request["calls"]
    answers = iter(zip(calls, request["answers"], strict=False))
    used = 0

    def replayer(_function: Callable[..., Any]) -> Callable[..., Any]:
        def replay(*arguments: Any, **named: Any) -> Any:
            nonlocal used
            expected, answer = next(answers, (None, None))
            if answer is None or plain.encode([list(arguments), named]) != expected:
                raise Divergence
            used += 1
            if answer[0] == "e":
                raise _exception_like(answer[1], answer[2])
            try:
                return plain.decode(answer[1])
            except plain.NotPlainError:  # a ValueError, which the test may expect of the program
                raise Divergence from None

        return replay

    try:
        _run_test(request, module, replayer)
        frames.value(0, "pass" if used == len(calls) else "diverged")
    except Divergence:
        frames.value(0, "diverged")
    except AssertionError:
        frames.value(0, "wrong")
    except BaseException as error:
        frames.exception(0, error)


def _run_test(request: dict[str, Any], module: types.ModuleType, wrap: Callable[[Callable[..., Any]], Any]) -> None:
    """Golden solution, then the test with the wrapped candidate in the place the test calls it from.

    In HumanEval's form, whose last line is `check(NAME)`, only that argument is the candidate: a test that uses NAME
    itself means the golden solution. In a list of asserts NAME is the candidate.
    """
    entry = request["entry"]
    load_before(request["before"], module)
    load(request["golden"], module)
    load_before(request["after"], module)
    scope = dict(module.__dict__)  # a copy: the golden solution's recursive calls of itself are not the test's
    candidate = wrap(scope[entry])
    random.seed(SEED)
    body, last = split_check(request["code"], entry)
    if last is None:
        scope[entry] = candidate
        exec(compile(body, "<test>", "exec"), scope)
        return
    exec(compile(body, "<test>", "exec"), scope)
    scope[last](candidate)


def split_check(code: str, entry: str) -> tuple[ast.Module, str | None]:
    """The test without its last line, and the name of the function that line calls on the entry point."""
    tree = ast.parse(code)
    match tree.body[-1] if tree.body else None:
        case ast.Expr(value=ast.Call(func=ast.Name(id=name), args=[ast.Name(id=argument)], keywords=[])):
            if argument == entry:
                return ast.Module(tree.body[:-1], tree.type_ignores), name
    return tree, None


def _exception_like(name: str, text: str) -> BaseException:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind is not UnicodeDecodeError:
        try:
            return kind(text)
        except TypeError:
            return ProgramError(name, text)
    return ProgramError(name, text)


def run_script(request: dict[str, Any], module: types.ModuleType, frames: Frames) -> None:
    """The weak way: program and test in one process, the program's answers cleaned to plain data where they are plain.

    Frame: `["v", 0, NONCE]` once the last line of the test ran. The nonce stops a program that only writes frames from
    knowledge of this file; it does not stop one that searches this process's memory.
    """
    entry, nonce, code = request["entry"], request.pop("nonce"), request["code"]
    stage = -1
    try:
        load_before(request["before"], module)
        load(request["program"], module)
        load_before(request["after"], module)
        scope = dict(module.__dict__)
        if entry and callable(scope.get(entry)):
            scope[entry] = _cleaned(scope[entry])
        stage = 0
        exec(compile(code, "<test>", "exec", dont_inherit=True), scope)
        frames.value(0, nonce)
    except BaseException as error:
        frames.exception(stage, error)


def _cleaned(function: Callable[..., Any]) -> Any:
    if isinstance(function, type):
        return function

    def call(*arguments: Any, **named: Any) -> Any:
        value = function(*arguments, **named)
        try:
            return plain.decode(plain.encode(value))
        except plain.NotPlainError:
            return value

    return call
