"""Run one program in the forked child: calls of a function, or a script on standard input; results leave as plain data.

Frames on the results file, one JSON line each: `["v", index, tree]` a value, `["e", index, type, text]` an exception in
that case (index -1: while the program loaded), `["o", index]` a value too large. They are guesses of an untrusted
process: the grader compares them and never believes a verdict.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

from . import plain

TEXT_LIMIT = 200
WIDEST = 3  # bytes of JSON for a byte of UTF-8, at most
# Kept here so that a program that replaces them in their modules does not replace ours.
_write = os.write
_encode, _decode, _dumps = plain.encode, plain.decode, plain.dumps


class Frames:
    """The results file of this child."""

    def __init__(self, handle: int, progress: Callable[[int], None], value_limit: int) -> None:
        self._handle, self.progress, self._value_limit = handle, progress, value_limit

    def send(self, *frame: Any) -> None:
        self._send_line(_dumps(list(frame)))

    def _send_line(self, line: bytes) -> None:
        sent = _write(self._handle, line)
        while sent < len(line):
            sent += _write(self._handle, line[sent:])

    def value(self, index: int, value: Any) -> bool:
        """Send one value; False, after a frame that says so, where it is too large."""
        try:
            line = _dumps(["v", index, _encode(value)])
        except plain.NotPlainError:
            line = b""
        if not line or len(line) > WIDEST * self._value_limit:
            self.send("o", index)
            return False
        self._send_line(line)
        return True

    def exception(self, index: int, error: BaseException) -> None:
        memory = isinstance(error, MemoryError)
        self.send("e", index, "MemoryError" if memory else plain.type_name(error), text_of(error))


def text_of(error: BaseException) -> str:
    """A short text of an exception, from its arguments alone: its own `__str__` is not called."""
    arguments = BaseException.__dict__["args"].__get__(error)
    texts = [part if type(part) is str else repr(part) for part in arguments[:3] if type(part) in (str, bool, float)]
    parts = [text[:TEXT_LIMIT] for text in texts]
    return " ".join(parts)[:TEXT_LIMIT]


def new_module(name: str, scope: dict[str, Any]) -> types.ModuleType:
    """A module that holds `scope`, ready to run a program in."""
    module = types.ModuleType(name)
    module.__dict__.update(scope)
    module.__dict__["__name__"] = name
    return module


def load(text: str, module: types.ModuleType) -> None:
    """Run a program's text in a module."""
    exec(compile(text, "<program>", "exec", dont_inherit=True), module.__dict__)


def load_before(texts: list[str], module: types.ModuleType) -> None:
    """Run what a problem puts before the program; a name that only the program defines may still be missing."""
    for text in texts:
        with contextlib.suppress(NameError):
            load(text, module)


def find_entry(module: types.ModuleType, name: str, taken: dict[str, Any]) -> Callable[..., Any] | None:
    """The function the program itself defined: a method of its class `Solution`, or a name not found in `taken`."""
    scope = module.__dict__
    solution = scope.get("Solution")
    if isinstance(solution, type) and solution is not taken.get("Solution") and hasattr(solution, name):
        method: Callable[..., Any] = getattr(solution(), name)
        return method
    found: Callable[..., Any] | None = scope.get(name)
    return None if found is taken.get(name) else found


def run_calls(request: dict[str, Any], module: types.ModuleType, frames: Frames) -> None:
    """Call the entry point on every case, `[arguments, named arguments]`, in order, until one fails."""
    index = -1
    try:
        load_before(request["before"], module)
        taken = {name: module.__dict__.get(name) for name in (request["entry"], "Solution")}
        load(request["program"], module)
        function = find_entry(module, request["entry"], taken)
        if function is None:
            frames.send("e", -1, "NameError", f"the program does not define {request['entry']}")
            return
        for index, tree in enumerate(request["cases"]):
            frames.progress(index)
            arguments, named = _decode(tree[0]), _decode(tree[1])
            if not frames.value(index, function(*arguments, **named)):
                return
    except BaseException as error:
        frames.exception(index, error)


def run_stdin(request: dict[str, Any], module: types.ModuleType, frames: Frames) -> int:
    """Run the program as a script and end it as the interpreter would. Returns its exit code."""
    code = 0
    try:
        load_before(request["before"], module)
        if "/dev/std" in request["program"]:
            module.__dict__["open"] = _open_standard
        load(request["program"], module)
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException as error:
        code = 1
        frames.exception(0, error)
    with contextlib.suppress(BaseException):
        vars(threading)["_shutdown"]()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    code = code or _flush((sys.stdout, sys.stderr))
    # Files that the program opened itself are flushed when they are collected.
    with contextlib.suppress(BaseException):
        module.__dict__.clear()
        gc.collect()
    return code or _flush((sys.__stdout__, sys.__stderr__))


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if not isinstance(stop.code, int):
        return 1
    return stop.code & 0xFF if -(1 << 63) <= stop.code < 1 << 63 else 0xFF


def _flush(streams: Iterable[Any]) -> int:
    """Flush output streams; 120 where that fails, as the interpreter's own exit code."""
    code = 0
    for stream in streams:
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException:
            code = 120
    return code


def _open_standard(file: Any, *arguments: Any, **options: Any) -> Any:
    """`open` for programs that name /dev/stdin: the sandbox has no /proc behind that link."""
    number = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}.get(file) if type(file) is str else None
    if number is not None:
        options["closefd"] = False
    return open(file if number is None else number, *arguments, **options)
