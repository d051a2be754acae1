"""Test code that is nothing but asserts on literals, read as cases without running it."""

from __future__ import annotations

import ast
import json
from typing import Any

from ssd_lite.grading.inside import plain, scripts


def plain_asserts(code: str, entry: str) -> list[tuple[list[Any], Any]] | None:
    """The cases of a test that is nothing but `assert entry(literals) == literal`; None for any other test."""
    try:
        tree, last = scripts.split_check(code, entry)
    except (SyntaxError, ValueError):
        return None
    body, name = tree.body, entry
    if last is not None:
        functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == last]
        if len(functions) != 1 or len(functions[0].args.args) != 1:
            return None
        rest = [node for node in body if node is not functions[0] and not _harmless(node)]
        if rest:
            return None
        body, name = functions[0].body, functions[0].args.args[0].arg
    cases = [_case(node, name) for node in body if not _harmless(node)]
    return None if not cases or None in cases else [case for case in cases if case is not None]


def _harmless(node: ast.stmt) -> bool:
    """A doc string, `assert True`, or an assignment of literals that no plain case can read."""
    if isinstance(node, ast.Expr | ast.Assert):
        value = node.value if isinstance(node, ast.Expr) else node.test
        return isinstance(value, ast.Constant) and bool(value.value)
    return isinstance(node, ast.Assign) and _literal(node.value) is not None


def _case(node: ast.stmt, name: str) -> tuple[list[Any], Any] | None:
    test = node.test if isinstance(node, ast.Assert) else None
    match test:
        case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[right]):
            expected = _literal(right)
        case _:
            return None
    if not isinstance(call.func, ast.Name) or call.func.id != name or call.keywords or expected is None:
        return None
    arguments = [_literal(argument) for argument in call.args]
    if any(argument is None for argument in arguments):
        return None
    return [argument[0] for argument in arguments if argument is not None], expected[0]


def _literal(node: ast.expr) -> tuple[Any] | None:
    try:
        value = ast.literal_eval(node)
        return (value,) if '"o"' not in json.dumps(plain.encode(value)) else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
