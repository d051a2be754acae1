"""One measured job in a process of its own, on the card or, as a dry run, on the CPU: `card_process.py JOB.json`.

The answer is the last line on stdout. `unsloth` must be imported before transformers and changes its process for good,
and only a process of its own has a peak of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train by `trainer.train_model`; a signal comes after step `stop_after`, where the job names one.

    Gives the steps as logged, the summary, and the card's memory (see `card_memory`), where `standing` is what is
    allocated between two steps: weights, adapter, and the optimiser's state unless it is paged.
    """
    folder, out = Path(job["folder"]), Path(job["out"])
    if job["engine"] == "unsloth":
        from ssd_lite.engines.training import unsloth_model

        unsloth_model.prepare(out / "unsloth_compiled")
    if job.get("interpreter"):
        _through_the_interpreter()
    import torch

    from ssd_lite import interrupt
    from ssd_lite.engines.training import trainer
    from ssd_lite.engines.training.batching import TrainingRow
    from ssd_lite.engines.training.peft_model import BaseModel
    from ssd_lite.engines.training.step_watch import StepWatch
    from ssd_lite.errors import EXIT_STOPPED, Stopped
    from ssd_lite.journal import read_records
    from ssd_lite.recipe import Train

    standing: list[int] = []

    class Measured(StepWatch):
        """Looks at the card's memory between two steps, and sends the signal."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                standing.append(torch.cuda.memory_allocated())
            if state.global_step == job.get("stop_after"):
                os.kill(os.getpid(), signal.SIGTERM)
            super().on_step_end(args, state, control, **kwargs)

    trainer.StepWatch = Measured  # type: ignore[misc]
    interrupt.listen()
    rows = [TrainingRow(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in job["rows"]]
    said: list[str] = []
    files = trainer.TrainingFiles(out / "checkpoints", out / "metrics.jsonl", out / "adapter", said.append)
    settings, base = Train.model_validate(job["train"]), BaseModel(job["model"], None, "-")
    try:
        summary = trainer.train_model(rows, folder, base, files, settings, engine=job["engine"], threads=job["threads"])
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from stopped
    memory = card_memory()
    return {
        "steps": sorted(read_records(files.metrics), key=lambda step: int(step["step"])),
        "summary": summary,
        "said": said,
        "memory": memory and {**memory, "standing": max(standing)},
    }


def sample(job: dict[str, Any]) -> dict[str, Any]:
    """Draw `new` tokens for every prompt at once with the sampler `hf`, after a short warm-up; none may end early."""
    from ssd_lite.engines.sampling.choice import open_sampler
    from ssd_lite.engines.sampling.sampler import Request, SamplerOptions
    from ssd_lite.records import Prompt, SamplingSettings

    prompts = [tuple(ids) for ids in job["prompts"]]
    options = SamplerOptions(len(prompts), job["threads"], end_ids=(), pad_id=0)
    sampler = open_sampler("hf", Path(job["folder"]), options)
    requests = [Request(Prompt(f"p{row}", "", ids), 0, row) for row, ids in enumerate(prompts)]

    def draw(new: int) -> int:
        settings = SamplingSettings(1.0, 20, 0.8, 0.0, new)
        return sum(len(one.ids) for one in sampler.sample(requests, settings, lambda tokens: None))

    draw(4)
    started = time.monotonic()
    tokens = draw(job["new"])
    return {"tokens": tokens, "seconds": time.monotonic() - started, "memory": card_memory()}


def card_memory() -> dict[str, int] | None:
    """Bytes on the card: most that tensors took (`allocated`), most that torch held for them (`reserved`), and what
    the card has in use beside that (`outside`: CUDA's context, and other programs). None without a card."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "outside": total - free - torch.cuda.memory_reserved(),
    }


def facts(job: dict[str, Any]) -> dict[str, Any]:
    """The card and the libraries, for the head of the block."""
    import platform

    import torch

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        capability = f"{card.major}.{card.minor}"
        found |= {"card": card.name, "card_bytes": card.total_memory, "capability": capability}
    return found


def _through_the_interpreter() -> None:
    """Unsloth's kernels on a CPU, in float16; see unsloth_shim."""
    import functools

    import torch
    import unsloth_shim

    from ssd_lite.engines.training import unsloth_model

    unsloth_shim.repair()
    build = functools.partial(unsloth_model.build_model, number_format=torch.float16)
    unsloth_model.build_model = build  # type: ignore[assignment]


def main(file: str) -> None:
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    if job.get("interpreter"):
        import unsloth_shim

        unsloth_shim.before_import()
    answer = {"train": train, "sample": sample, "facts": facts}[job["kind"]](job)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
