"""The stage that chooses what is trained on: samples.jsonl in, train.jsonl out; correctness only if asked for."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ssd_lite.atomic import write_text
from ssd_lite.errors import NothingToLearnError, UserError
from ssd_lite.journal import read_records
from ssd_lite.recipe import Curate
from ssd_lite.records import Sample, sample_from_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.cut_off import dropped_warnings
from ssd_lite.stages.nothing_left import note_nothing

if TYPE_CHECKING:
    from ssd_lite.engines.tokenizer import ChatTokenizer
    from ssd_lite.stages.correctness import Graded

REASONS = ("empty", "stub", "cut_off", "too_long", "duplicate", "not_correct", "shortest")


def curate(run: RunFolder) -> dict[str, Any]:
    """Filter the samples and write the training rows, or say what was done before.

    The summary counts `samples`, `rows`, `dropped` by reason (each sample under the first that holds), and the tokens:
    `prompt_tokens`, `trained_tokens`, `longest`; with curate.only_correct `graded` says how many passed. Raises
    UserError where no sample is left, naming the reasons, and for samples whose ids contradict their record.
    """
    done = run.done("curate")
    if done is not None and run.train_rows.is_file():
        return done
    run.require("sample")
    started = time.monotonic()
    samples = read_samples(run)
    check_ids(samples, _tokenizer(run))
    graded = _graded(run, samples)
    passed = None if graded is None else graded.passed
    kept, dropped = choose(samples, run.recipe.curate, run.recipe.train.max_length, passed)
    if not kept:
        reasons = ", ".join(f"{count} {name}" for name, count in dropped.items() if count) or "there was none"
        note_nothing(run, f"0 of {len(samples)} samples left: {reasons}")
        raise NothingToLearnError(
            f"0 of {len(samples)} samples left: {reasons}.",
            where=str(run.samples),
            next_step="Loosen the section curate, or raise sample.n, sample.max_new_tokens or train.max_length.",
        )
    write_text(run.train_rows, "".join(json.dumps(_row(sample)) + "\n" for sample in kept))
    summary = {
        "samples": len(samples),
        "rows": len(kept),
        "dropped": dropped,
        "prompt_tokens": sum(len(sample.prompt_ids) for sample in kept),
        "trained_tokens": sum(len(sample.completion_ids) for sample in kept),
        "longest": max(_length(sample) for sample in kept),
        **({} if graded is None else {"graded": graded.summary}),
        "warnings": dropped_warnings(dropped["cut_off"], len(samples)),
    }
    run.finish("curate", summary, time.monotonic() - started)
    return summary


def read_samples(run: RunFolder) -> list[Sample]:
    """All samples of the run by (problem, index), so that the order in which they finished changes nothing."""
    samples = [sample_from_json(record) for record in read_records(run.samples)]
    return sorted(samples, key=lambda sample: sample.key)


def _graded(run: RunFolder, samples: Sequence[Sample]) -> Graded | None:
    if not run.recipe.curate.only_correct:
        return None
    from ssd_lite.stages.correctness import grade_training_samples

    return grade_training_samples(run, samples)


def choose(
    samples: Sequence[Sample], rules: Curate, max_length: int, passed: Container[tuple[str, int]] | None = None
) -> tuple[list[Sample], dict[str, int]]:
    """The samples that stay, in their order, and how many fell to each reason of REASONS.

    `passed` holds the keys of the correct samples; None does not look at correctness, and has no count for it.
    """
    dropped = {reason: 0 for reason in REASONS if reason != "not_correct" or passed is not None}
    kept: list[Sample] = []
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for sample in samples:
        reason = _reason(sample, rules, max_length)
        twin = (sample.problem_id, sample.completion_ids)
        if reason is None and rules.deduplicate and twin in seen:
            reason = "duplicate"
        if reason is None and passed is not None and sample.key not in passed:
            reason = "not_correct"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(twin)
        kept.append(sample)
    short = int(len(kept) * rules.shortest_percent / 100)
    by_length = sorted(kept, key=lambda sample: (len(sample.completion_ids), sample.key))
    fallen = {sample.key for sample in by_length[:short]}
    dropped["shortest"] = len(fallen)
    return [sample for sample in kept if sample.key not in fallen], dropped


def _reason(sample: Sample, rules: Curate, max_length: int) -> str | None:
    text = sample.completion.strip()
    if not text or not sample.completion_ids:
        return "empty"
    if rules.drop_stubs and len(text.splitlines()) == 1:
        return "stub"
    if rules.cut_off == "drop" and sample.finish_reason == "length":
        return "cut_off"
    return "too_long" if _length(sample) > max_length else None


def check_ids(samples: Iterable[Sample], tokenizer: ChatTokenizer) -> None:
    """Raise UserError for a sample whose ids cannot be trained on as they are.

    A prompt that starts with two BOS was rendered and then tokenised with specials; an end token is there exactly where
    the model ended by itself.
    """
    bos, ends = tokenizer.bos_id, set(tokenizer.end_ids)
    for sample in samples:
        problem = None
        if bos is not None and sample.prompt_ids[:2] == (bos, bos):
            problem = "the prompt starts with two BOS tokens"
        elif not sample.prompt_ids:
            problem = "the prompt has no token"
        elif (sample.completion_ids[-1:] != () and sample.completion_ids[-1] in ends) != (
            sample.finish_reason == "stop"
        ):
            problem = f"finish_reason is {sample.finish_reason!r}, and the last token says the opposite"
        if problem:
            raise UserError(
                f"{problem}.",
                where=f"sample {sample.index} of problem {sample.problem_id!r}",
                next_step="These samples come from another tokenizer or a damaged file: sample again in a new folder.",
            )


def _length(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.completion_ids)


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "problem_id": sample.problem_id,
        "index": sample.index,
        "prompt_ids": list(sample.prompt_ids),
        "completion_ids": list(sample.completion_ids),
        "targets": None if sample.targets is None else dataclasses.asdict(sample.targets),
    }


def _tokenizer(run: RunFolder) -> ChatTokenizer:
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.tokenizer import ChatTokenizer

    return ChatTokenizer.load(hf_folder(base_model(run)))


def show(run: RunFolder, count: int) -> str:
    """The first `count` training rows token by token: what is masked, what is trained, end tokens; `|` between.

    Control characters of the model's text are written as escapes, so they cannot move the terminal.
    """
    run.require("curate")
    tokenizer = _tokenizer(run)
    rows = [json.loads(line) for line in run.train_rows.read_text(encoding="utf-8").splitlines()[:count]]
    return "\n\n".join(_show_row(row, tokenizer) for row in rows)


def _show_row(row: dict[str, Any], tokenizer: ChatTokenizer) -> str:
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    ends = completion[-1] in tokenizer.end_ids
    return "\n".join(
        [
            f"problem {visible(row['problem_id'])}, sample {row['index']}: "
            f"{len(prompt)} masked + {len(completion)} trained = {len(prompt) + len(completion)} tokens",
            "masked   " + _tokens(prompt, tokenizer),
            "trained  " + _tokens(completion, tokenizer) + ("  <- end token, trained" if ends else "  <- no end token"),
        ]
    )


def _tokens(ids: Sequence[int], tokenizer: ChatTokenizer) -> str:
    return "|".join(visible(tokenizer.decode([token])) for token in ids)


def visible(text: str) -> str:
    """Text with everything a terminal would obey (escapes, carriage returns, direction marks) written as an escape."""
    return "".join(
        char if char.isprintable() else "\\n" if char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
