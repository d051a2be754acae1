"""Read one request in the forked child and do the job it names; this process ends with it."""

from __future__ import annotations

import json
import os
import sys
import types

from . import prelude, program, scripts

_exit = os._exit


def serve(text: bytes, modules: dict[str, types.ModuleType], frames: program.Frames) -> None:
    """Do the job a request asks for, then end this process. `text` is the request's JSON object."""
    request = json.loads(text)
    module = modules["prelude" if request["prelude"] else "bare"]
    if request["prelude"]:
        sys.setrecursionlimit(prelude.RECURSION_LIMIT)
    name = "__main__" if request["job"] == "stdin" else "program"
    module.__dict__["__name__"] = name
    sys.modules[name] = sys.modules["__main__"] = module
    code = 0
    match request["job"]:
        case "stdin":
            code = program.run_stdin(request, module, frames)
        case "calls":
            program.run_calls(request, module, frames)
        case "record":
            scripts.run_record(request, module, frames)
        case "replay":
            scripts.run_replay(request, module, frames)
        case "script":
            scripts.run_script(request, module, frames)
    _exit(code)
