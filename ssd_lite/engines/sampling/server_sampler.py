"""Samples through an inference server that runs as long as the sampler: many requests at once, one for each completion.

The draw is the server's, so a seed gives no bit-equal completion here. That it draws from our law is tried before the
first completion counts (server_probe.py).
"""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ssd_lite.engines.sampling.sampler import Completion, CountTokens, Engine, Request, SamplerOptions, check_lengths
from ssd_lite.engines.sampling.server_api import Api, Reply, find_api
from ssd_lite.engines.sampling.server_http import ServerError, ask
from ssd_lite.engines.sampling.server_law import ToldLaw, laws_of
from ssd_lite.engines.sampling.server_probe import refuse_another_law
from ssd_lite.engines.sampling.server_process import ServerProcess, free_port
from ssd_lite.engines.sampling.targets import TargetsBuilder
from ssd_lite.errors import Stopped, UserError
from ssd_lite.records import SamplingSettings

_TRIES = 3
_AGAIN_S = 2.0
_POLL_S = 0.2
_SILENCE_S = 24 * 3600.0  # a long completion is one answer; a server that ends closes the connection


class ServerSampler:
    """A model behind a server that this starts and ends."""

    name: Engine = "server"

    def __init__(self, model: Path, options: SamplerOptions) -> None:
        if options.server is None:
            raise UserError(
                "is not set.",
                where="server.command",
                next_step="Write how the server is started, or take engine auto (docs/server.md).",
            )
        self._model, self._options, self._server = model, options, options.server
        self.context_length = options.server.context  # the server's own once it runs
        self._process: ServerProcess | None = None
        self._started: tuple[Api, ServerProcess] | None = None

    def _start(self, look: Callable[[], None]) -> tuple[Api, ServerProcess]:
        """Start the server and wait until it answers; `look` is called meanwhile. Raises UserError."""
        port = free_port()
        batch = self._options.batch_size
        values = {"model": str(self._model), "gguf": str(self._model), "port": str(port), "batch": str(batch)}
        values |= {"context": str(self._server.context), "total": str(self._server.context * batch)}
        self._process = ServerProcess(self._server.words(values), port, self._server.log)
        self._process.wait_ready(self._server.start_limit_s, look)
        with _connection(port) as connection:
            api = find_api(connection)
        self.context_length = api.context_length
        self._started = api, self._process
        return self._started

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, count_tokens: CountTokens
    ) -> Iterator[Completion]:
        """Answer each request once; see `Sampler`. A server that ended is a UserError, and what had come is kept."""
        if not requests:
            return
        api, process = self._started or self._start(lambda: count_tokens(0))
        check_lengths(requests, settings, api.context_length)
        with _Asking(api, process, settings, self._options, count_tokens) as asking:
            refuse_another_law(api, asking.replies, requests, settings)
            yield from asking.all(requests)

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.close()
            self._process = self._started = None


@contextmanager
def _connection(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SILENCE_S)
    try:
        yield connection
    finally:
        connection.close()


@dataclass
class _Asking:
    """Requests under way: threads that wait for the server, and a queue of what came back."""

    api: Api
    process: ServerProcess
    settings: SamplingSettings
    options: SamplerOptions
    count_tokens: CountTokens
    _came: queue.Queue[Completion | BaseException] = field(default_factory=queue.Queue)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Asking:
        self._pool = ThreadPoolExecutor(self.options.batch_size)
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what is under way: the server is about to be ended, which ends the threads' waiting."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def replies(self, requests: Sequence[Request], settings: SamplingSettings, best: int) -> list[Reply]:
        """Answers to a few requests, in their order. A stop is heard meanwhile, and a server that ends."""
        futures = [self._pool.submit(self.reply, request, settings, best) for request in requests]
        while wait(futures, timeout=_POLL_S).not_done:
            self.count_tokens(0)
            self.process.check()
        if any(future.exception() for future in futures):
            self.process.check()
        return [future.result() for future in futures]

    def all(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they come. Raises UserError where the server ended or keeps refusing, Stopped after a signal.

        What has come is handed out before anything is raised: its hours are spent.
        """
        for request in requests:
            self._pool.submit(self._work, request)
        left = len(requests)
        while left:
            came = self._next()
            if isinstance(came, Completion):
                left -= 1
                yield came
            trouble = self._trouble(came)
            if trouble is not None:
                yield from self._finished()
                self.count_tokens(0)  # a stop says anew how much is saved by now
                self.process.check()
                raise trouble

    def _next(self) -> Completion | BaseException | None:
        """What comes next; None where nothing has for a moment."""
        try:
            return self._came.get(timeout=_POLL_S)
        except queue.Empty:
            return None

    def _trouble(self, came: Completion | BaseException | None) -> BaseException | None:
        """Why to end: an error that came, a stop, a server that has ended."""
        if isinstance(came, BaseException):
            return came
        try:
            self.count_tokens(0 if came is None else len(came.ids))
            if came is None:
                self.process.check()
        except (Stopped, UserError) as error:
            return error
        return None

    def _finished(self) -> Iterator[Completion]:
        """What else has come by now."""
        while True:
            try:
                came = self._came.get_nowait()
            except queue.Empty:
                return
            if isinstance(came, Completion):
                yield came

    def _work(self, request: Request) -> None:
        if self._stop.is_set():
            return
        try:
            best = self.api.best_for(self.settings.top_k) if self.options.keep_targets else 0
            self._came.put(_completion(request, self.reply(request, self.settings, best), self.settings, best))
        except BaseException as error:
            self._came.put(error)

    def reply(self, request: Request, settings: SamplingSettings, best: int) -> Reply:
        """The server's answer to a request, whole. What fails is asked again some times. Raises UserError."""
        reply = self._one_reply(request, settings, best)
        while reply.goes_on and len(reply.ids) < settings.max_new_tokens and not self._stop.is_set():
            prompt = replace(request.prompt, ids=(*request.prompt.ids, *reply.ids))
            # Another seed: the same would repeat the random numbers of the first part.
            after = replace(request, prompt=prompt, seed=request.seed + len(reply.ids))
            left = replace(settings, max_new_tokens=settings.max_new_tokens - len(reply.ids))
            reply = reply.then(self._one_reply(after, left, best))
        return reply

    def _one_reply(self, request: Request, settings: SamplingSettings, best: int) -> Reply:
        path, body = self.api.body(request.prompt.ids, settings, request.seed, self.options.end_ids, best)
        tried = 0
        while True:
            tried += 1
            try:
                with _connection(self.process.port) as connection:
                    reply = self.api.reply(ask(connection, path, body), self.options.end_ids)
                if reply.prompt_tokens != len(request.prompt.ids):
                    raise _refused(
                        f"read a prompt of {len(request.prompt.ids)} tokens as {reply.prompt_tokens}: it changes them",
                        request,
                    )
                return reply
            except ServerError as error:
                if error.lasting or tried == _TRIES or self._stop.is_set():
                    raise _refused(f"did not answer: {error}", request) from error
                time.sleep(_AGAIN_S)
            except (KeyError, TypeError, ValueError) as error:
                raise _refused(f"gave no completion that can be trained on: {error!r}", request) from error


def _refused(words: str, request: Request) -> UserError:
    return UserError(
        f"{words} (problem {request.prompt.problem_id}).",
        where="server.command",
        next_step="Look at server.log in the run folder; finished completions are kept.",
    )


def _completion(request: Request, reply: Reply, settings: SamplingSettings, asked: int) -> Completion:
    """With the laws where the server told the `asked` likeliest tokens; without, nobody counted entropy and survivors.

    Where it tells nothing of a position, or the token hangs on a tie at the law's edge, the target is the drawn token
    itself: right on average, as sampling is (`ToldLaw.target`).
    """
    if reply.best is None:
        return Completion(request, reply.ids, reply.finish_reason, None, None)
    laws, targets = laws_of(reply, settings, asked), TargetsBuilder()
    for token, law in zip(reply.ids, laws, strict=True):
        targets.add(*((np.array([token]), np.ones(1)) if law is None else law.target(token)))
    facts = [_facts(law) for law in laws if law is not None]
    entropy, survivors = (float(np.mean(values)) for values in zip(*facts, strict=True)) if facts else (None, None)
    return Completion(request, reply.ids, reply.finish_reason, entropy, survivors, targets.build())


def _facts(law: ToldLaw) -> tuple[float, int]:
    return float(law.law.entropies()[0]), int(law.law.counts()[0])
