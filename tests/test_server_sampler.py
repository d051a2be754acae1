"""Engine server against llama.cpp's real server and a stand-in of vLLM: law, ids, ends, faults, and that it ends."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_stand_in import END, law, logits, told_of

from ssd_lite.engines.sampling.choice import open_sampler
from ssd_lite.engines.sampling.law import truncate
from ssd_lite.engines.sampling.sampler import Completion, Request, SamplerOptions, ServerOptions
from ssd_lite.engines.sampling.server_api import LlamaServer, _arrays
from ssd_lite.engines.sampling.server_process import ServerProcess, free_port
from ssd_lite.engines.sampling.server_sampler import ServerSampler, _completion
from ssd_lite.errors import Stopped, UserError
from ssd_lite.recipe_server import Server
from ssd_lite.records import Prompt, SamplingSettings

HERE = Path(__file__).parent
STAND_IN = f"{sys.executable} {HERE / 'vllm_stand_in.py'} --port {{port}} --model {{model}} --context 4096"
LLAMA = (
    f"{sys.executable} {HERE / 'llama_server.py'} --model {{gguf}} --port {{port}} "
    "--ctx-size {total} --parallel {batch}"
)
LAW = SamplingSettings(temperature=1.3, top_k=12, top_p=0.85, min_p=0.0, max_new_tokens=24)


def requests(count: int, prompt: tuple[int, ...] = (5, 9, 17)) -> list[Request]:
    return [Request(Prompt(f"p{number}", "", (*prompt, number % 50 + 3)), 0, 1000 + number) for number in range(count)]


def sampler(tmp_path: Path, command: str, model: Path = HERE, batch: int = 4, **more: Any) -> ServerSampler:
    end_ids, context = more.pop("end_ids", (END,)), more.pop("context", 512)
    server = ServerOptions(
        Server(command=command).words, more.pop("start_limit_s", 60), context, tmp_path / "server.log"
    )
    made = open_sampler("server", model, SamplerOptions(batch, 1, end_ids, 0, server=server, **more))
    assert isinstance(made, ServerSampler)
    return made


def drawn(made: ServerSampler, asked: list[Request], settings: SamplingSettings = LAW) -> list[Completion]:
    try:
        return list(made.sample(asked, settings, lambda tokens: None))
    finally:
        made.close()


def faulty(tmp_path: Path, fault: str, ties: str = "", **more: Any) -> ServerSampler:
    command = f"{STAND_IN} --fault {shlex.quote(fault)}" + (f" --ties {ties}" if ties else "")
    return sampler(tmp_path, command, **more)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def gone(pid: int) -> bool:
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


# -- vLLM's fields, against the stand-in ------------------------------------------------------------------------------


def test_completions_are_raw_ids_with_their_end(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    made = sampler(tmp_path, f"{STAND_IN} --calls {calls}")
    asked = requests(30)
    found = drawn(made, asked)
    assert sorted(one.request.prompt.problem_id for one in found) == sorted(r.prompt.problem_id for r in asked)
    assert {one.finish_reason for one in found} == {"stop", "length"}
    for one in found:
        assert (one.ids[-1] == END) == (one.finish_reason == "stop")
        assert END not in one.ids[:-1]
        assert len(one.ids) == 24 or one.finish_reason == "stop"
        assert (one.entropy_nats, one.survivors, one.targets) == (None, None, None)
    bodies = [json.loads(line) for line in calls.read_text().splitlines()]
    body = next(body for body in bodies if body["seed"] == 1000 and "logprobs" not in body)
    assert body == {
        "model": "stand-in",
        "prompt": [5, 9, 17, 3],
        "max_tokens": 24,
        "n": 1,
        "seed": 1000,
        "stream": False,
        "temperature": 1.3,
        "top_k": 12,
        "top_p": 0.85,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [END],
        "ignore_eos": False,
        "skip_special_tokens": False,
        "return_token_ids": True,
    }, "whatever is not sent, vLLM takes from generation_config.json"


def test_the_laws_it_tells_become_targets(tmp_path: Path) -> None:
    found = drawn(sampler(tmp_path, STAND_IN, keep_targets=True), requests(10))
    body = {"temperature": 1.3, "top_k": 12, "top_p": 0.85, "min_p": 0.0}
    for one in found:
        assert one.targets is not None
        assert one.targets.hold(one.ids)
        ids, probs = one.targets.padded()
        before = [one.request.prompt.ids[-1], *one.ids[:-1]]
        for place, last in enumerate(before):
            exact = law(logits(last), body, "")
            told = {int(i): float(p) for i, p in zip(ids[place], probs[place], strict=True) if p > 0}
            assert told == pytest.approx(exact, abs=1e-5)
        entropies = [-sum(p * np.log(p) for p in law(logits(last), body, "").values()) for last in before]
        assert one.entropy_nats == pytest.approx(np.mean(entropies), abs=1e-4)


# -- ties, as logits of bfloat16 have them ----------------------------------------------------------------------------

TIES = ["keep", "exact", "whole"]


@pytest.mark.parametrize("ties", TIES)
def test_a_right_server_of_bfloat16_is_taken_and_its_laws_hold(ties: str, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    settings = SamplingSettings(1.6, 20, 0.8, 0.0, 64)
    made = sampler(tmp_path, f"{STAND_IN} --ties {ties} --calls {calls}", keep_targets=True)
    found = drawn(made, requests(40), settings)
    outside = alone = tokens = 0
    for one in found:
        assert one.targets is not None
        assert one.targets.hold(one.ids)
        assert one.entropy_nats is not None
        ids, probs = one.targets.padded()
        assert np.allclose(probs.sum(axis=1), 1, atol=1e-6)
        for place, last in enumerate([one.request.prompt.ids[-1], *one.ids[:-1]]):
            best = _arrays([(int(name[9:]), v) for name, v in told_of(logits(last, ties), one.ids[place], 20).items()])
            assert best is not None
            ours = truncate(best[0][None, :20], best[1][None, :20], settings)
            inside = one.ids[place] in ours.ids[ours.probs > 0]
            outside += not inside
            if not inside:
                assert (ids[place, 0], probs[place, 0]) == (one.ids[place], 1.0)
            alone += probs[place, 0] == 1.0 and ours.counts()[0] > 1
            tokens += 1
    assert outside > 0, "a tie fell otherwise than in our own cut, or this tests nothing"
    assert alone < 0.15 * tokens, "soft targets are laws"
    assert {json.loads(line).get("logprobs") for line in calls.read_text().splitlines()} == {20}, "vLLM tells no more"


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(
    "fault", ["ignores temperature", "ignores top_k", "ignores top_p", "a wider top_p", "a narrower top_p"]
)
def test_another_law_is_refused_in_bfloat16_too(fault: str, ties: str, tmp_path: Path) -> None:
    made = faulty(tmp_path, fault, ties=ties)
    with pytest.raises(UserError, match="vLLM does not draw from the law of this recipe"):
        drawn(made, requests(20), SamplingSettings(1.6, 20, 0.8, 0.0, 64))


# -- laws, faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["ignores temperature", "ignores top_k", "ignores top_p", "ignores min_p"])
def test_another_law_is_refused_before_anything_is_kept(fault: str, tmp_path: Path) -> None:
    settings = SamplingSettings(1.6, 4, *((1.0, 0.4) if fault == "ignores min_p" else (0.7, 0.0)), 64)
    assert len(drawn(sampler(tmp_path, STAND_IN), requests(20), settings)) == 20
    with pytest.raises(UserError, match="vLLM does not draw from the law of this recipe"):
        drawn(faulty(tmp_path, fault), requests(20), settings)


@pytest.mark.parametrize("top_k", [0, 40])
def test_a_law_of_more_tokens_than_it_tells_is_tried_with_fewer(top_k: int, tmp_path: Path) -> None:
    settings = SamplingSettings(1.6, top_k, 1.0, 0.0, 64)
    assert len(drawn(sampler(tmp_path, STAND_IN), requests(20), settings)) == 20
    with pytest.raises(UserError, match="does not draw from the law"):
        drawn(faulty(tmp_path, "ignores temperature"), requests(20), settings)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("adds a token", "read a prompt of 4 tokens as 5"),
        ("drops the end token", "without one of the model's end tokens"),
        ("tells no token ids", "gave no completion that can be trained on"),
        ("tells no logprobs", "tells no log-probabilities"),
        ("tells equals", "of 1.. tokens of vLLM hang on a tie"),
        ("refuses", "status 400: .*top_k is not allowed"),
        ("is another server", "neither llama.cpp's server"),
        ("does not start", "ended with exit code 1. Its last words: .*no card was found"),
        ("dies", "ended with exit code 3"),
    ],
)
def test_faults_are_said(fault: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        drawn(faulty(tmp_path, fault), requests(40))


def test_what_came_before_it_died_is_kept(tmp_path: Path) -> None:
    made, found = faulty(tmp_path, "dies", batch=1), []

    def collect() -> None:
        for one in made.sample(requests(40), LAW, lambda tokens: None):
            found.append(one)

    with pytest.raises(UserError, match="exit code 3"):
        collect()
    made.close()
    assert len(found) == 12 - 8, "eight answered the probe"


@pytest.mark.parametrize("batch", [16, 4])
def test_a_stop_throws_nothing_away_that_has_come(batch: int, tmp_path: Path) -> None:
    """All have answered when it is heard, at the first that is counted: all are handed out, and said to be."""
    calls = tmp_path / "calls"
    made, found = sampler(tmp_path, f"{STAND_IN} --calls {calls}", batch=batch), []

    def count(tokens: int) -> None:
        if not tokens and not found:
            return
        until = time.monotonic() + 30
        while calls.read_bytes().count(b"\n") < 8 + 16 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)  # the last were asked just now
        raise Stopped(f"stopped after {len(found)}.")

    def collect() -> None:
        for one in made.sample(requests(16), LAW, count):
            found.append(one.request.prompt.problem_id)

    with pytest.raises(Stopped, match=r"stopped after 16\."):
        collect()
    made.close()
    assert sorted(found) == sorted(request.prompt.problem_id for request in requests(16))


def test_a_server_that_stumbles_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd_lite.engines.sampling.server_sampler._AGAIN_S", 0.01)
    assert len(drawn(faulty(tmp_path, "stumbles", batch=1), requests(20))) == 20


def test_loading_has_a_limit_and_a_stop_is_heard_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not answer after 1 s. Its last words: a stand-in starts"):
        drawn(faulty(tmp_path, "loads for ever", start_limit_s=1), requests(1))

    def stop(tokens: int) -> None:
        raise Stopped("stopped")

    made = faulty(tmp_path, "loads for ever")
    with pytest.raises(Stopped):
        list(made.sample(requests(1), LAW, stop))
    pid = made._process._child.pid
    made.close()
    assert gone(pid)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "hangs at once"])
def test_a_stop_while_it_thinks_ends_it_at_once(fault: str, tmp_path: Path) -> None:
    """Among the completions, and in the answers by which its law is tried."""
    made, started = faulty(tmp_path, fault), time.monotonic()

    def count(tokens: int) -> None:
        if time.monotonic() - started > 3:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        list(made.sample(requests(40), LAW, count))
    pid = made._process._child.pid
    made.close()
    assert gone(pid)
    assert time.monotonic() - started < 15


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be started: No such file"):
        drawn(sampler(tmp_path, "no-such-server --port {port} {model}"), requests(1))


def test_min_p_inside_a_nucleus_is_another_law_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vLLM applies min_p before top_p"):
        drawn(sampler(tmp_path, STAND_IN), requests(3), SamplingSettings(1.0, 20, 0.8, 0.1, 8))


def test_too_long_a_prompt_is_refused_by_its_context(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the context of 4096 tokens leaves 0"):
        drawn(sampler(tmp_path, STAND_IN), requests(1), SamplingSettings(1.0, 20, 1.0, 0.0, 5000))


def test_it_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from ssd_lite.engines.sampling.server_api import LlamaServer, _arrays
from ssd_lite.engines.sampling.server_process import ServerProcess, free_port
port = free_port()
words = {shlex.split(STAND_IN)!r}
words = [word.format(port=port, model="m") for word in words]
server = ServerProcess(words, port, Path({str(tmp_path / "log")!r}))
server.wait_ready(60, lambda: None)
print(server._child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    assert gone(pid)


def test_what_it_started_ends_too(tmp_path: Path) -> None:
    """A worker that outlives its parent would keep the card's memory."""
    script = tmp_path / "server.sh"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{tmp_path}/worker\ntrap 'exit 0' TERM\nwait\n")
    script.chmod(0o755)
    server = ServerProcess([str(script)], free_port(), tmp_path / "log")
    until = time.monotonic() + 20
    while not (tmp_path / "worker").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
    worker = int((tmp_path / "worker").read_text())
    server.close()
    server.close()
    assert gone(worker)


def test_a_place_that_llama_server_tells_nothing_of(tmp_path: Path) -> None:
    """It leaves a token out that ends inside a character; the next is still matched with its own law."""
    told = [{"id": i, "top_logprobs": [{"id": i, "logprob": -0.1}, {"id": 9, "logprob": -2.3}]} for i in (5, 7, END)]
    answer = {"tokens": [5, 6, 7, END], "stop_type": "eos", "tokens_evaluated": 3, "completion_probabilities": told}
    reply = LlamaServer(64).reply(answer, (END,))
    assert reply.best is not None
    assert [None if best is None else best[0].tolist() for best in reply.best] == [[5, 9], None, [7, 9], [END, 9]]
    made = _completion(requests(1)[0], reply, SamplingSettings(1.0, 2, 1.0, 0.0, 8), LlamaServer(64).best_for(2))
    assert made.targets is not None
    assert made.targets.counts.tolist() == [2, 1, 2, 2]
    assert made.targets.hold(reply.ids)
    assert made.survivors == 2


# -- llama.cpp's own server -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(packaged_model) -> tuple[Any, list[Request]]:
    from ssd_lite.engines.tokenizer import ChatTokenizer

    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    tokenizer = ChatTokenizer.load(packaged_model.folder)
    text, ids = tokenizer.render([{"role": "user", "content": "Name a colour."}])
    return tokenizer, [Request(Prompt("p", text, tuple(ids)), index, 77 + index) for index in range(240)]


@pytest.mark.slow
def test_llama_servers_law_is_ours(asked, packaged_model, tmp_path: Path) -> None:
    """First tokens of 240 completions against the law that our own engine keeps; and what it tells of the law."""
    tokenizer, every = asked
    settings = SamplingSettings(1.3, 12, 0.9, 0.0, 1)
    options = {"end_ids": tokenizer.end_ids, "context": 64, "keep_targets": True}
    found = drawn(sampler(tmp_path, LLAMA, packaged_model.gguf, **options), every, settings)
    own = open_sampler(
        "llama_cpp", packaged_model.gguf, SamplerOptions(1, 1, tokenizer.end_ids, tokenizer.pad_id, keep_targets=True)
    )
    (ours,) = own.sample(every[:1], settings, lambda tokens: None)
    own.close()
    assert ours.targets is not None
    exact = dict(zip(ours.targets.ids.tolist(), ours.targets.probs.tolist(), strict=True))
    for one in found[:5]:
        assert one.targets is not None
        told = dict(zip(one.targets.ids.tolist(), one.targets.probs.tolist(), strict=True))
        assert sum(abs(told.get(token, 0) - exact.get(token, 0)) for token in {*told, *exact}) / 2 < 0.02
    counts = Counter(one.ids[0] for one in found)
    assert set(counts) <= set(exact)
    # Chi-squared over tokens that are expected at least five times; its mean is its degrees of freedom.
    often = {token: 240 * prob for token, prob in exact.items() if 240 * prob >= 5}
    distance = sum((counts[token] - wanted) ** 2 / wanted for token, wanted in often.items())
    assert distance < len(often) + 5 * np.sqrt(2 * len(often))


@pytest.mark.slow
def test_llama_server_answers_greedily_as_our_sampler(asked, packaged_model, tmp_path: Path) -> None:
    tokenizer, every = asked
    settings = SamplingSettings(1.0, 1, 1.0, 0.0, 40)
    made = sampler(tmp_path, LLAMA, packaged_model.gguf, end_ids=tokenizer.end_ids, context=96)
    (theirs,) = drawn(made, every[:1], settings)
    own = open_sampler("llama_cpp", packaged_model.gguf, SamplerOptions(1, 1, tokenizer.end_ids, tokenizer.pad_id))
    (ours,) = own.sample(every[:1], settings, lambda tokens: None)
    own.close()
    assert (theirs.ids, theirs.finish_reason) == (ours.ids, ours.finish_reason)
