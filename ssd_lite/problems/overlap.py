"""Duplicates inside a set, and training prompts that occur in an evaluation set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssd_lite.errors import UserError
from ssd_lite.records import Problem

SHOWN_IDS = 5


def identities(problem: Problem) -> frozenset[str]:
    """The texts that identify a problem, white space folded: its messages, and the source's bare statement.

    Loaders keep the bare statement in `extra["statement"]`, so that one task in two wordings of the request around it
    is still one task.
    """
    texts = {problem.statement()}
    bare = problem.extra.get("statement")
    if isinstance(bare, str) and bare.strip():
        texts.add(" ".join(bare.split()))
    return frozenset(texts)


def remove_duplicates(problems: Iterable[Problem]) -> tuple[list[Problem], list[Problem]]:
    """`(kept, dropped)`: the first problem of each prompt is kept, the order stays. Exact, white space folded.

    Only the messages count here: one bare statement with other tests (MBPP has such pairs) is another problem.
    """
    kept: list[Problem] = []
    dropped: list[Problem] = []
    seen: set[str] = set()
    for problem in problems:
        statement = problem.statement()
        (dropped if statement in seen else kept).append(problem)
        seen.add(statement)
    return kept, dropped


def remove_overlap(
    train: Sequence[Problem], evaluation: Sequence[Problem]
) -> tuple[list[Problem], list[tuple[Problem, str]]]:
    """`(kept, dropped)` training problems; each dropped one comes with the id of the evaluation problem it repeats."""
    tested = {key: problem.id for problem in evaluation for key in identities(problem)}
    kept: list[Problem] = []
    dropped: list[tuple[Problem, str]] = []
    for problem in train:
        match = next((tested[key] for key in sorted(identities(problem)) if key in tested), None)
        if match is None:
            kept.append(problem)
        else:
            dropped.append((problem, match))
    return kept, dropped


def refuse_overlap(train: Sequence[Problem], evaluation: Sequence[Problem]) -> None:
    """UserError if a training prompt is also an evaluation prompt: a score on it would say nothing."""
    _, dropped = remove_overlap(train, evaluation)
    if not dropped:
        return
    pairs = [problem.id if problem.id == match else f"{problem.id} = {match}" for problem, match in dropped]
    shown = ", ".join(pairs[:SHOWN_IDS]) + (", ..." if len(pairs) > SHOWN_IDS else "")
    raise UserError(
        f"{len(pairs)} of {len(train)} training prompts are in the evaluation set: {shown}.",
        where="problems",
        next_step="Train on other prompts, or evaluate on another set.",
    )
