"""The names that judges such as LiveCodeBench's put in scope before a program, and the modules kept warm for it."""

from __future__ import annotations

import importlib
from typing import Any

# A later module's names win over an earlier one's; builtins come late so that `pow`, `abs` and `open` stay Python's
# own.
_STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
)
STAR_MODULES = _STARRED.split()
PLAIN_MODULES = [*STAR_MODULES, "os", "time", "threading", "dataclasses", "decimal", "fractions", "array"]
RECURSION_LIMIT = 50_000


def names() -> dict[str, Any]:
    """The prelude's names. Functions and classes of the star modules, and each module by its own name."""
    scope: dict[str, Any] = {}
    for name in STAR_MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        scope.update({key: getattr(module, key) for key in public})
    scope.update({name: importlib.import_module(name) for name in PLAIN_MODULES if name not in ("os", "builtins")})
    return scope
