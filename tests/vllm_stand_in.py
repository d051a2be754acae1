"""A stand-in for vLLM's server: its documented fields over HTTP, drawing from a made-up model, with faults on wish.

`python vllm_stand_in.py --port N [--fault NAME] [--calls FILE]`. The model's logits follow from the last token alone;
its vocabulary has 64 tokens, of which 2 ends a completion.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VOCABULARY, END = 64, 2


def logits(last: int) -> list[float]:
    """Of the token after `last`."""
    draw = random.Random(last)
    return [draw.gauss(0, 2.0) - (1.5 if token == END else 0.0) for token in range(VOCABULARY)]


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value - max(values)) for value in values)) + max(values)
    return [value - total for value in values]


def law(values: list[float], body: dict[str, Any], fault: str) -> dict[int, float]:
    """Temperature, top-k, min-p, top-p: what survives, with its probabilities."""
    temperature = 1.0 if fault == "ignores temperature" else body["temperature"]
    ranked = sorted(range(len(values)), key=lambda token: -values[token])
    if body["top_k"] > 0 and fault != "ignores top_k":
        ranked = ranked[: body["top_k"]]
    most = values[ranked[0]] + (temperature * math.log(body["min_p"]) if body["min_p"] > 0 else -math.inf)
    if fault != "ignores min_p":  # before the nucleus, as vLLM does
        ranked = [token for token in ranked if values[token] >= most]
    scaled = [math.exp(values[token] / temperature) for token in ranked]
    probs = {token: weight / sum(scaled) for token, weight in zip(ranked, scaled, strict=True)}
    mass, kept = 0.0, {}
    for token, prob in probs.items():
        if mass >= body["top_p"] and fault != "ignores top_p":
            break
        kept[token], mass = prob, mass + prob
    return {token: prob / sum(kept.values()) for token, prob in kept.items()}


def complete(body: dict[str, Any], fault: str) -> dict[str, Any]:
    draw, last, ids, best = random.Random(body["seed"]), body["prompt"][-1], [], []
    while len(ids) < body["max_tokens"] and last not in body["stop_token_ids"]:
        values = logits(last)
        probs = law(values, body, fault)
        last = draw.choices(list(probs), list(probs.values()))[0]
        told = log_softmax(values)
        ranked = sorted(range(VOCABULARY), key=lambda token: -told[token])[: body.get("logprobs") or 0]
        best.append({f"token_id:{token}": told[token] for token in {*ranked, last}})
        ids.append(last)
    ended = ids[-1] in body["stop_token_ids"]
    if ended and fault == "drops the end token":
        ids, best = ids[:-1], best[:-1]
    choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "stop" if ended else "length", "token_ids": ids}
    if fault == "tells no token ids":
        choice["token_ids"] = None
    choice["logprobs"] = {"top_logprobs": best} if body.get("logprobs") and fault != "tells no logprobs" else None
    extra = fault == "adds a token"
    return {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"]) + extra}}


def handler(options: argparse.Namespace) -> type[BaseHTTPRequestHandler]:
    calls = 0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            pass

        def _answer(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path == "/health":
                self._answer(200, {})
            elif self.path == "/v1/models" and options.fault != "is another server":
                self._answer(200, {"data": [{"id": "stand-in", "max_model_len": options.context}]})
            else:
                self._answer(404, {"error": "not found"})

        def do_POST(self) -> None:
            nonlocal calls
            calls += 1
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if options.calls:
                with open(options.calls, "a") as file:
                    file.write(json.dumps(body) + "\n")
            if options.fault == "refuses":
                self._answer(400, {"error": "top_k is not allowed"})
            elif options.fault == "stumbles" and calls % 3 == 0:
                self._answer(503, {"error": "later"})
            elif options.fault == "dies" and calls > 12:
                os._exit(3)
            elif (options.fault == "hangs" and calls > 12) or options.fault == "hangs at once":
                time.sleep(600)
            else:
                self._answer(200, complete(body, options.fault))

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--fault", default="")
    parser.add_argument("--calls", type=Path)
    options = parser.parse_args()
    print("a stand-in starts", flush=True)
    if options.fault == "does not start":
        raise SystemExit("no card was found")
    if options.fault == "loads for ever":
        time.sleep(600)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), handler(options))
    server.daemon_threads = True
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
