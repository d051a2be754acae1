"""llama.cpp's own server (PyPI `xllamacpp`) as a program: `python llama_server.py --model FILE --port N [...]`.

The flags are llama-server's; the tests start it as a user would start that.
"""

from __future__ import annotations

import argparse
import signal
import threading


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=1024)
    parser.add_argument("--parallel", type=int, default=4)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.n_parallel = (
        options.model, options.port, options.ctx_size, options.parallel,
    )  # fmt: skip
    params.cpuparams.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(0.2):
        pass
    # The library's own threads do not end with it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
