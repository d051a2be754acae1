"""rStar-Coder's `seed_sft` as training prompts: distinct statements that have a passed answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.problems.hub import HubFiles, open_remote
from ssd_lite.problems.parquet import read_rows
from ssd_lite.records import Problem

HUB_NAME = "microsoft/rStar-Coder"
HUB_FOLDER = "seed_sft"
NEEDED = ("question", "is_passed")
COLUMNS = ("question_id", "question", "starter_code", "is_passed")
Opener = Callable[[], AbstractContextManager[Any]]


def load_rstar_coder(
    files: Sequence[Path] | HubFiles, *, limit: int | None = None
) -> tuple[list[Problem], dict[str, int]]:
    """`(problems, counts)` of the parquet files, prompts only; `limit` stops reading after that many problems.

    A statement is kept once (exact, white space folded), at its first row whose `is_passed` is true; statements with no
    such row are left out (arXiv 2604.01193 keeps about 10,167). Only four columns are read, batch by batch: over the
    network the long answers, nearly all of the bytes, are never fetched. Counts: `rows`, `not_passed` and `repeated`
    rows, `kept` problems.
    """
    counts = {"rows": 0, "not_passed": 0, "repeated": 0, "kept": 0}
    problems: list[Problem] = []
    seen: set[bytes] = set()
    used_ids: set[str] = set()
    for row in _rows(_openers(files)):
        counts["rows"] += 1
        question = row["question"]
        if row["is_passed"] is not True or not isinstance(question, str) or not question.strip():
            counts["not_passed"] += 1
            continue
        digest = hashlib.sha256(" ".join(question.split()).encode("utf-8", "surrogatepass")).digest()
        if digest in seen:
            counts["repeated"] += 1
            continue
        seen.add(digest)
        problem_id = _id(row, digest, used_ids)
        used_ids.add(problem_id)
        problems.append(_problem(problem_id, question, row.get("starter_code")))
        if limit is not None and len(problems) >= limit:
            break
    counts["kept"] = len(problems)
    if not problems:
        what = f"0 of {counts['rows']} rows are left: none has is_passed = true."
        raise UserError(what, where=HUB_NAME, next_step="Is it the config seed_sft?")
    return problems, counts


def _openers(files: Sequence[Path] | HubFiles) -> list[Opener]:
    if isinstance(files, HubFiles):
        return [partial(open_remote, files, name) for name in files.names]
    return [partial(nullcontext, path) for path in files]


def _rows(openers: Sequence[Opener]) -> Iterator[dict[str, Any]]:
    for opener in openers:
        with opener() as source:
            yield from read_rows(source, COLUMNS, needed=NEEDED)


def _id(row: dict[str, Any], digest: bytes, used: set[str]) -> str:
    """The source's own id; where it has none, or gives it to two statements, one made from the statement."""
    own = row.get("question_id")
    problem_id = f"rstar-coder/{own}" if own not in (None, "") else ""
    return problem_id if problem_id and problem_id not in used else f"rstar-coder/{digest.hex()[:16]}"


def _problem(problem_id: str, question: str, starter_code: object) -> Problem:
    if isinstance(starter_code, str) and starter_code.strip():
        how = f"Start from this code and keep its names:\n\n```python\n{starter_code.strip()}\n```"
    else:
        how = "Read the input from standard input and print the answer to standard output."
    content = (
        "Solve this programming problem in Python 3.\n\n"
        f"{question.strip()}\n\n{how}\n\n"
        "Answer with the whole program in one ```python block."
    )
    extra = {"statement": question, "source": f"{HUB_NAME} {HUB_FOLDER}"}
    return Problem(id=problem_id, messages=({"role": "user", "content": content},), extra=extra)
