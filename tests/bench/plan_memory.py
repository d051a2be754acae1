"""Peak memory of real training, sampling and merging on the CPU, a process each, against the plan's formulas.

python tests/bench/plan_memory.py --out tests/data/plan_memory.json        # all, about ten minutes on one thread
python tests/bench/plan_memory.py --only lora-1x512                        # one, printed
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
SMOL = "smollm2-135m-instruct"
# A random model with other proportions than the packaged one: wide MLP, small vocabulary, untied head.
WIDE = {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "head_dim": 96,
    "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip
# Each: stage, model, and what its settings are. `fit` marks those that the CPU's constants were read from.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "lora-1x512-all": {"stage": "train", "model": SMOL, "rows": 1, "length": 512, "checkpointing": False, "fit": True},
    "lora-1x512": {"stage": "train", "model": SMOL, "rows": 1, "length": 512, "checkpointing": True, "fit": True},
    "lora-1x1024": {"stage": "train", "model": SMOL, "rows": 1, "length": 1024, "checkpointing": True},
    "lora-4x256-all": {"stage": "train", "model": SMOL, "rows": 4, "length": 256, "checkpointing": False},
    "lora-r64-2x256-all": {"stage": "train", "model": SMOL, "rows": 2, "length": 256, "checkpointing": False, "r": 64},
    "full-1x256": {"stage": "train", "model": SMOL, "rows": 1, "length": 256, "checkpointing": True, "method": "full"},
    "qlora-1x256": {
        "stage": "train", "model": SMOL, "rows": 1, "length": 256, "checkpointing": True, "method": "qlora",
    },
    "wide-lora-2x512-all": {
        "stage": "train", "model": "wide", "rows": 2, "length": 512, "checkpointing": False, "fit": True,
    },
    "wide-lora-2x512": {
        "stage": "train", "model": "wide", "rows": 2, "length": 512, "checkpointing": True, "fit": True,
    },
    "wide-full-2x256-all": {
        "stage": "train", "model": "wide", "rows": 2, "length": 256, "checkpointing": False, "method": "full",
    },
    "hf-8x96": {"stage": "sample", "model": SMOL, "engine": "hf", "rows": 8, "prompt": 32, "new": 64},
    "hf-16x192": {"stage": "sample", "model": SMOL, "engine": "hf", "rows": 16, "prompt": 128, "new": 64},
    "llama-8x512": {"stage": "sample", "model": SMOL, "engine": "llama_cpp", "rows": 8, "prompt": 128, "new": 384},
    "llama-16x1024": {"stage": "sample", "model": SMOL, "engine": "llama_cpp", "rows": 16, "prompt": 128, "new": 896},
    "merge": {"stage": "merge", "model": SMOL},
}  # fmt: skip


def peak_rss_bytes() -> int:
    """This process's own peak; ru_maxrss would carry over the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def model_folder(name: str, work: Path) -> Path:
    """The dequantised packaged model, or a random one written here."""
    if name == "wide":
        return work / "wide"
    from ssd_lite.engines.model_source import hf_folder, resolve_model

    return hf_folder(resolve_model(name))


def make_wide(folder: Path) -> None:
    """Write the random model in a process of its own, so that making it is not measured."""
    code = f"""
from transformers import AutoModelForCausalLM, LlamaConfig
AutoModelForCausalLM.from_config(LlamaConfig(**{WIDE!r})).save_pretrained({str(folder)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def train(case: dict[str, Any], work: Path) -> None:
    from ssd_lite.engines.training.batching import TrainingRow
    from ssd_lite.engines.training.peft_model import BaseModel
    from ssd_lite.engines.training.trainer import TrainingFiles, train_model
    from ssd_lite.recipe import Train

    prompt = case["length"] // 4
    ids = tuple(range(5, 5 + case["length"]))
    rows = [TrainingRow(ids[:prompt], ids[prompt:])] * case["rows"]
    settings = Train(
        method=case.get("method", "lora"), max_steps=3, per_device_train_batch_size=case["rows"],
        gradient_accumulation_steps=1, gradient_checkpointing=case["checkpointing"], lora_r=case.get("r", 16),
    )  # fmt: skip
    files = TrainingFiles(work / "checkpoints", work / "metrics.jsonl", work / "adapter", lambda line: None)
    train_model(
        rows, model_folder(case["model"], work), BaseModel(case["model"], None, "-"), files, settings, threads=1
    )


def sample(case: dict[str, Any], work: Path) -> None:
    from ssd_lite.engines.model_source import gguf_file, resolve_model
    from ssd_lite.engines.sampling.choice import open_sampler
    from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
    from ssd_lite.records import Prompt, SamplingSettings

    source = resolve_model(case["model"])
    engine = case["engine"]
    file = model_folder(case["model"], work) if engine == "hf" else gguf_file(source, "f16")
    sampler = open_sampler(engine, file, SamplerOptions(case["rows"], 1, end_ids=(), pad_id=0))
    ids = tuple(range(5, 5 + case["prompt"]))
    new = case["new"] if engine == "hf" else 16  # llama.cpp sets its whole cache aside at the start
    requests = [Request(Prompt(f"p{row}", "", (*ids, 100 + row)[1:]), 0, row) for row in range(case["rows"])]
    settings = SamplingSettings(1.0, 20, 0.8, 0.0, case["new"])
    seen = [0]

    def count(tokens: int) -> None:
        seen[0] += tokens
        if seen[0] > case["rows"] * (case["prompt"] + new):
            print(json.dumps({"peak_rss_bytes": peak_rss_bytes()}), flush=True)
            os._exit(0)

    for _ in sampler.sample(requests, settings, count):
        pass


def merge(case: dict[str, Any], work: Path) -> None:
    from ssd_lite.engines.weights.merge import merge_folder

    (work / "merged").mkdir()
    merge_folder(model_folder(case["model"], work), work / "adapter", work / "merged", dtype="base", base_sha256="-")


def run_worker(name: str, work: Path) -> None:
    case = CONFIGURATIONS[name]
    {"train": train, "sample": sample, "merge": merge}[case["stage"]](case, work)
    print(json.dumps({"peak_rss_bytes": peak_rss_bytes()}), flush=True)


def measure(name: str) -> int:
    """Peak resident bytes of one configuration in a process of its own."""
    case = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory(prefix="ssd-lite-plan-") as made:
        work = Path(made)
        if case["model"] == "wide":
            make_wide(work / "wide")
        if case["stage"] == "merge":  # needs an adapter of this base
            before = {"stage": "train", "model": SMOL, "rows": 1, "length": 32, "checkpointing": True}
            call = f"['train']({before!r}, pathlib.Path({made!r}))"
            code = f"import runpy, pathlib; runpy.run_path({__file__!r}){call}"
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        words = [sys.executable, __file__, "--worker", name, "--work", made]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_rss_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    if options.worker:
        run_worker(options.worker, options.work)
        return
    found = {}
    for name in options.only or CONFIGURATIONS:
        found[name] = {**CONFIGURATIONS[name], "peak_rss_bytes": measure(name)}
        print(f"{name:24} {found[name]['peak_rss_bytes'] / 2**20:7.0f} MiB", flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
