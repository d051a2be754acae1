"""Answers a list of problems into a journal of samples: rendering, seeds, progress, going on after a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ssd_lite.errors import Stopped, UserError
from ssd_lite.grading.extract import opens_thinking
from ssd_lite.interrupt import stop_requested
from ssd_lite.journal import Journal, Record
from ssd_lite.progress import Progress
from ssd_lite.prompts import render
from ssd_lite.recipe_server import Server
from ssd_lite.records import Problem, Sample, SamplingSettings, Span, sample_from_json, to_json
from ssd_lite.span_file import SpanFile
from ssd_lite.stages.distilling import Student

if TYPE_CHECKING:
    from ssd_lite.engines.sampling.sampler import Completion, Engine, Request
    from ssd_lite.engines.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Answering:
    """Who answers and how: `folder` gives tokenizer and template; the engine loads `weights`, the folder or a GGUF.

    With `targets_file` the law of every drawn token is kept there. With `student`, the folder of another model, the
    samples are recorded with that model's ids. `enable_thinking` goes to the chat template, a teacher's only where it
    knows it. `server` is how engine server starts one.
    """

    engine: Engine
    folder: Path
    weights: Path
    model_hash: str
    settings: SamplingSettings
    n: int
    seed: int
    batch_size: int
    threads: int | None
    gguf_type: str | None = None
    targets_file: Path | None = None
    student: Path | None = None
    enable_thinking: bool | None = None
    server: Server | None = None


def sample_key(record: Record) -> tuple[str, int]:
    """The key of samples and grades in their journals."""
    return (record["problem_id"], record["index"])


def answer(problems: Sequence[Problem], how: Answering, journal_file: Path, label: str) -> dict[str, Any]:
    """Make the samples that `journal_file` still lacks. Each is on disk, fsynced, as soon as it is finished.

    Returns samples, tokens, and the seconds and tok/s of this process. Raises Stopped after a signal.
    """
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(how.folder, how.enable_thinking, lenient=how.student is not None)
    started = time.monotonic()
    with Journal(journal_file, sample_key) as journal, ExitStack() as files:
        wanted = {(r.prompt.problem_id, r.index): r for r in _requests(problems, how, tokenizer)}
        student = None if how.student is None else Student(how.student, tokenizer, problems, how.enable_thinking)
        _check_records(journal, wanted if student is None else student.requests(wanted), how)
        targets = None
        if how.targets_file is not None:
            spans = [Span(**record["targets"]) for record in journal.records if record["targets"] is not None]
            targets = files.enter_context(SpanFile(how.targets_file, spans))
        requests = [request for key, request in wanted.items() if key not in journal]
        made = 0
        log = journal_file.with_name("server.log")
        for completion in _complete(requests, how, tokenizer, label, len(wanted), log):
            span = None
            if targets is not None and completion.targets is not None:
                # The laws first: a record on disk never names what is not there.
                span = targets.append(completion.targets.to_bytes())
            sample = _sample(completion, how, tokenizer, span)
            journal.append([to_json(sample if student is None else student.learns(sample))])
            made += len(completion.ids)
        tokens = sum(len(record["completion_ids"]) for record in journal.records)
        seconds = time.monotonic() - started
        return {
            "samples": len(journal),
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(made / seconds, 1) if made else None,
            "cut_off": sum(record["finish_reason"] == "length" for record in journal.records),
            "cut_bytes": journal.cut_bytes,
            **({} if student is None else {"same_vocabulary": student.same_vocabulary}),
        }


def _complete(
    requests: Sequence[Request], how: Answering, tokenizer: ChatTokenizer, label: str, total: int, log: Path
) -> Iterator[Completion]:
    """Completions of the requests as they finish, with progress. Raises Stopped after a signal."""
    from ssd_lite.engines.sampling.choice import open_sampler
    from ssd_lite.engines.sampling.sampler import SamplerOptions, ServerOptions

    if not requests:
        return
    keep_targets = how.targets_file is not None
    server = None
    if how.server is not None and how.server.command is not None:
        context = max(len(request.prompt.ids) for request in requests) + how.settings.max_new_tokens
        server = ServerOptions(how.server.words, how.server.start_limit_s, context, log)
    options = SamplerOptions(how.batch_size, how.threads, tokenizer.end_ids, tokenizer.pad_id, keep_targets, server)
    sampler = open_sampler(how.engine, how.weights, options)
    finished = total - len(requests)
    with Progress(total, "samples", label, start=finished) as progress:

        def count(tokens: int) -> None:
            progress.advance(0, tokens=tokens)
            # Asked at every step: a completion may take minutes, a notice to stop gives seconds.
            if stop_requested():
                raise Stopped(f"{label} stopped after {finished} of {total} samples.")

        try:
            for completion in sampler.sample(requests, how.settings, count):
                yield completion
                finished += 1
                progress.advance()
        finally:
            sampler.close()


def _check_records(journal: Journal, wanted: Mapping[tuple[str, int], Request], how: Answering) -> None:
    """Raise UserError if the journal holds samples made otherwise: two laws, models or problem sets are not mixed."""
    settings = asdict(how.settings)
    for record in journal.records:
        request = wanted.get(sample_key(record))
        if request is None:
            changed = "another problem set or n"
        elif tuple(record["prompt_ids"]) != request.prompt.ids:
            changed = "other prompts (their text, the chat template or model.enable_thinking has changed)"
        elif record["settings"] != settings:
            old = record["settings"]
            differing = [
                f"{name}: {old.get(name)} → {value}" for name, value in settings.items() if old.get(name) != value
            ]
            changed = f"other settings ({', '.join(differing)})"
        elif record["seed"] != request.seed:
            changed = "another seed"
        elif record["model_hash"] != how.model_hash or record["engine"] != how.engine:
            changed = "another model or engine"
        else:
            continue
        raise UserError(
            f"holds samples of {changed}, such as {record['problem_id']} number {record['index']}.",
            where=str(journal.path),
            next_step="Put the old settings back, move the file away, or start a new run with --out.",
        )


def _requests(problems: Sequence[Problem], how: Answering, tokenizer: ChatTokenizer) -> list[Request]:
    from ssd_lite.engines.sampling.law import derived_seed
    from ssd_lite.engines.sampling.sampler import Request

    return [
        Request(prompt, index, derived_seed(how.seed, prompt.problem_id, index))
        for prompt in render(problems, tokenizer)
        for index in range(how.n)
    ]


def _sample(completion: Completion, how: Answering, tokenizer: ChatTokenizer, targets: Span | None) -> Sample:
    request = completion.request
    return Sample(
        problem_id=request.prompt.problem_id,
        index=request.index,
        prompt_ids=request.prompt.ids,
        completion_ids=completion.ids,
        completion=tokenizer.decode(completion.ids, skip_special=True),
        finish_reason=completion.finish_reason,
        entropy_nats=None if completion.entropy_nats is None else round(completion.entropy_nats, 6),
        seed=request.seed,
        settings=how.settings,
        engine=how.engine,
        model_hash=how.model_hash,
        survivors=None if completion.survivors is None else round(completion.survivors, 4),
        targets=targets,
        opened_thinking=opens_thinking(request.prompt.text),
    )


def read_samples(journal_file: Path) -> list[Sample]:
    """All samples of a journal; a torn last line is cut."""
    with Journal(journal_file, sample_key) as journal:
        return [sample_from_json(record) for record in journal.records]


def take(problems: Sequence[Problem], limit: int | None, seed: int) -> list[Problem]:
    """`limit` problems drawn with `seed`, in the order of the set; all if there is no limit."""
    if limit is None or limit >= len(problems):
        return list(problems)
    chosen = set(Random(seed).sample(range(len(problems)), limit))
    return [problem for position, problem in enumerate(problems) if position in chosen]
