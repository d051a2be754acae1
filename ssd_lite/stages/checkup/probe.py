"""Checks that load heavy libraries: `python -m ssd_lite.stages.checkup.probe NAME [WORD]` prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.run_lock import die_with_parent

HUB = "https://huggingface.co"
HUB_LIMIT_S = 5.0


def _torch() -> dict[str, Any]:
    from ssd_lite.engines.checks.doctor_torch import torch_facts

    return torch_facts()


def _bitsandbytes() -> dict[str, Any]:
    from ssd_lite.engines.checks.doctor_bitsandbytes import bitsandbytes_facts

    return bitsandbytes_facts()


def _llama() -> dict[str, Any]:
    from ssd_lite.engines.checks.doctor_llama import llama_facts

    return llama_facts()


def _sandbox(choice: Any = "auto") -> dict[str, Any]:
    from ssd_lite.grading.tiers import choose_tier

    tier, sandbox, refused = choose_tier(choice)
    sandbox.close()
    return {"tier": tier, "refused": refused}


def _hub() -> dict[str, Any]:
    """Any answer at all means that the Hub can be reached; no token is sent."""
    address = os.environ.get("HF_ENDPOINT") or HUB
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "ssd-lite doctor"})
    try:
        with urllib.request.urlopen(request, timeout=HUB_LIMIT_S):
            pass
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError) as error:
        return {"reached": False, "error": str(getattr(error, "reason", error))}
    return {"reached": True, "error": ""}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "torch": _torch, "bitsandbytes": _bitsandbytes, "llama": _llama, "sandbox": _sandbox, "hub": _hub,
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run one probe with the words after its name; what it raises is an answer too: `{"trouble": …, "missing": …}`."""
    die_with_parent()
    with _stdout_to_ourselves() as out:
        try:
            answer = PROBES[arguments[0]](*arguments[1:])
        except MissingLibraryError as error:
            answer = {"trouble": error.what, "missing": True}
        except UserError as error:
            answer = {"trouble": error.what, "missing": False}
        except Exception as error:
            answer = {"trouble": _in_a_line(error), "missing": False}
        json.dump(answer, out)


def _in_a_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'without a word'}"


@contextmanager
def _stdout_to_ourselves() -> Iterator[TextIO]:
    """What libraries print, in C too, goes to stderr; the answer alone goes to stdout."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        yield out


if __name__ == "__main__":
    main(sys.argv[1:])
