"""What an importance matrix of the training rows is worth: KL of quantised files to the exact one, with and without.

    python tests/bench/export_imatrix.py MODEL ROWS.jsonl --to q4_k_m,q4_0,q2_k --work DIR [--held-out N] [--tokens N]

ROWS are a run's train.jsonl or samples.jsonl. The last N rows (default 24) are held out: KL is measured on their
completions, the matrix computed from the others. DIR takes the files.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from ssd_lite.engines.checks.gguf_measures import ReferenceModel, measure
from ssd_lite.engines.gguf.imatrix import compute_imatrix
from ssd_lite.engines.gguf.imatrix_file import read_imatrix
from ssd_lite.engines.gguf.set import write_gguf_set
from ssd_lite.engines.model_source import hf_folder, resolve_model
from ssd_lite.engines.scoring.scorer import Text


def main() -> None:
    """Write the files that are missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--to", default="q4_k_m,q4_0,q2_k")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=10**9)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    folder = hf_folder(resolve_model(options.model))
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    train, held = rows[: -options.held_out], rows[-options.held_out :]
    texts, tokens = [], 0
    for row in train:
        if tokens < options.tokens:
            texts.append([*row["prompt_ids"], *row["completion_ids"]])
            tokens += len(texts[-1])
    types = options.to.split(",")
    exact = {name: options.work / f"{name}.gguf" for name in ("f16", "q8_0")}
    plain = {name: options.work / f"{name}.gguf" for name in types}
    write_gguf_set(folder, exact | plain, threads=options.threads)
    started, file = time.monotonic(), options.work / "imatrix.gguf"
    if not file.exists():
        compute_imatrix(exact["q8_0"], texts, file, dataset=options.rows.name, threads=options.threads)
        print(f"matrix of {len(texts)} rows, {tokens} tokens: {time.monotonic() - started:.1f} s")
    guided = {name: options.work / f"imatrix-{name}.gguf" for name in types}
    write_gguf_set(folder, guided, imatrix=read_imatrix(file), threads=options.threads)
    paths = {"q8_0": exact["q8_0"]}
    for name in types:
        paths |= {name: plain[name], f"{name} with matrix": guided[name]}
    unseen = [
        Text(tuple(row["prompt_ids"]), tuple(row["completion_ids"]), np.arange(len(row["completion_ids"])))
        for row in held
    ]
    reference = ReferenceModel("llama_cpp", exact["f16"], "its own f16 GGUF")
    perplexity, found = measure(reference, paths, unseen, lambda tokens: None, options.threads)
    print(f"{len(held)} held-out rows; f16: perplexity {perplexity:.4f}")
    for name, one in found.items():
        size = paths[name].stat().st_size / 1e6
        print(
            f"{name:24} {size:6.1f} MB  KL {one.kl:.5f} ± {one.kl_error or 0:.5f}  99 % {one.kl_high:.4f}  "
            f"same best token {one.same_top:.4f}  perplexity {one.perplexity:.4f}  {one.positions} positions"
        )


if __name__ == "__main__":
    main()
