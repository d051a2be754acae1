"""A stand-in for vLLM's server: its documented fields over HTTP, drawing from a made-up model, with faults on wish.

`python vllm_stand_in.py --port N [--fault NAME] [--calls FILE] [--ties keep|exact|whole]`. The model's logits follow
from the last token alone; its vocabulary has 64 tokens, of which 2 ends a completion. With --ties they are those of a
model in bfloat16, near 20 as such models' are, so that many are equal, and ties at the edge are parted as vLLM's
samplers do: `keep` all that tie with the k-th and cut the nucleus between equals (PyTorch), `exact`ly k (Triton), or
`whole`: no equals are parted (FlashInfer).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VOCABULARY, END = 64, 2


def bfloat16(value: float) -> float:
    """The nearest number of bfloat16."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    (rounded,) = struct.unpack("<f", struct.pack("<I", (bits + 0x8000) & 0xFFFF0000))
    return float(rounded)


def logits(last: int, ties: str = "") -> list[float]:
    """Of the token after `last`."""
    draw = random.Random(last)
    values = [draw.gauss(0, 2.0) - (1.5 if token == END else 0.0) for token in range(VOCABULARY)]
    return [bfloat16(20 + value) for value in values] if ties else values


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value - max(values)) for value in values)) + max(values)
    return [value - total for value in values]


def law(values: list[float], body: dict[str, Any], fault: str, ties: str = "exact") -> dict[int, float]:
    """Temperature, top-k, min-p, top-p: what survives, with its probabilities."""
    temperature = 1.0 if fault == "ignores temperature" else body["temperature"]
    top_p = {"ignores top_p": 1.0, "a wider top_p": 0.9, "a narrower top_p": 0.5}.get(fault, body["top_p"])
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token * 37 % VOCABULARY))
    if body["top_k"] > 0 and fault != "ignores top_k":
        least = values[ranked[: body["top_k"]][-1]]
        tied = [token for token in ranked if values[token] >= least]
        ranked = ranked[: body["top_k"]] if ties == "exact" else tied
    most = values[ranked[0]] + (temperature * math.log(body["min_p"]) if body["min_p"] > 0 else -math.inf)
    if fault != "ignores min_p":  # before the nucleus, as vLLM does
        ranked = [token for token in ranked if values[token] >= most]
    scaled = [math.exp((values[token] - values[ranked[0]]) / temperature) for token in ranked]
    probs = {token: weight / sum(scaled) for token, weight in zip(ranked, scaled, strict=True)}
    mass, kept, edge = 0.0, {}, math.inf
    for token, prob in probs.items():
        if mass >= top_p and not (ties == "whole" and values[token] == edge):
            break
        kept[token], mass, edge = prob, mass + prob, values[token]
    return {token: prob / sum(kept.values()) for token, prob in kept.items()}


def told_of(values: list[float], last: int, best: int) -> dict[str, float]:
    """The drawn token, then the likeliest; equals in another order than the law's, as a server's may be."""
    told = log_softmax(values)
    ranked = sorted(range(VOCABULARY), key=lambda token: (-told[token], -token))[:best]
    return {f"token_id:{token}": told[token] for token in (last, *ranked)}


def complete(body: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    fault, draw, last = options.fault, random.Random(body["seed"]), body["prompt"][-1]
    ids, best = [], []
    while len(ids) < body["max_tokens"] and last not in body["stop_token_ids"]:
        values = logits(last, options.ties)
        probs = law(values, body, fault, options.ties or "exact")
        last = draw.choices(list(probs), list(probs.values()))[0]
        told = [0.0] * VOCABULARY if fault == "tells equals" else values
        best.append(told_of(told, last, body.get("logprobs") or 0))
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
            elif (body.get("logprobs") or 0) > 20:
                self._answer(400, {"error": "logprobs: more than the allowed 20"})
            elif options.fault == "stumbles" and calls % 3 == 0:
                self._answer(503, {"error": "later"})
            elif options.fault == "dies" and calls > 12:
                os._exit(3)
            elif (options.fault == "hangs" and calls > 12) or options.fault == "hangs at once":
                time.sleep(600)
            else:
                self._answer(200, complete(body, options))

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--fault", default="")
    parser.add_argument("--calls", type=Path)
    parser.add_argument("--ties", default="", choices=["", "keep", "exact", "whole"])
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
