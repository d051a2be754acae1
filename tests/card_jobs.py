"""What the tests of a card ask card_process to do: the model, rows of real text, the settings, and its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssd_lite.recipe import Train

HERE = Path(__file__).parent
# One optimiser step reads all four lengths, the longest two in one micro-batch without padding.
LENGTHS, ROWS = (1.0, 1.0, 0.75, 0.5), 8
STEPS, WARM_UP_STEPS = 12, 2
# Each method with the optimiser that the shipped recipes give it.
METHODS = {"lora": "adamw_torch", "qlora": "paged_adamw_8bit"}
LIBRARIES = ("transformers", "peft", "bitsandbytes", "triton", "unsloth", "unsloth_zoo")


def training_settings(method: str, length: int, **changes: Any) -> Train:
    """Two micro-batches of two rows a step, as `method` is trained on a card; the loss must fall within STEPS."""
    values = {
        "method": method,
        "optim": METHODS[method],
        "max_length": length,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-4,
        "save_steps": STEPS // 2,
    }
    return Train.model_validate(values | changes)


def text_rows(folder: Path, length: int) -> list[dict[str, list[int]]]:
    """Rows of at most `length` tokens out of the texts of the starter problems; a quarter of each is its prompt."""
    from ssd_lite.engines.tokenizer import ChatTokenizer
    from ssd_lite.problems.starter import load_starter

    texts = [message["content"] for problem in load_starter("train") for message in problem.messages]
    ids = ChatTokenizer.load(folder).encode_text("\n\n".join(texts))
    ids *= 1 + ROWS * length // len(ids)
    rows = []
    for number in range(ROWS):
        row = ids[number * length :][: round(LENGTHS[number % len(LENGTHS)] * length)]
        rows.append({"prompt_ids": row[: len(row) // 4], "completion_ids": row[len(row) // 4 :]})
    return rows


@dataclass
class Jobs:
    """Runs jobs of one model in `folder`, each at most once. `rows` None takes real text for the model's tokenizer."""

    model: str
    weights: Path
    folder: Path
    length: int = 1024
    threads: int | None = None
    rows: list[dict[str, list[int]]] | None = None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def train(self, engine: str, method: str, *, interpreter: bool = False, **changes: Any) -> dict[str, Any]:
        """A training from start to end."""
        return self._once(self._name(engine, method, changes), self._training(engine, method, interpreter, changes))

    def train_broken(
        self, engine: str, method: str, after: int, *, interpreter: bool = False, **changes: Any
    ) -> dict[str, Any]:
        """The same training, stopped by a signal after a step and gone on with in a second process."""
        job = self._training(engine, method, interpreter, changes)
        name = f"broken-{self._name(engine, method, changes)}"
        code, words = self._run(name, {**job, "stop_after": after})
        if code != 75:
            raise AssertionError(f"stopped after step {after}, it ended with {code} instead of 75:\n{words}")
        return self._once(name, job)

    def sample(self, batch: int, prompt: int, new: int) -> dict[str, Any]:
        """`batch` completions of `new` tokens, drawn together."""
        ids = [row["prompt_ids"] + row["completion_ids"] for row in self._rows()]
        prompts = [[*ids[row % len(ids)], *ids[0]][row : row + prompt] for row in range(batch)]
        job = {"kind": "sample", "folder": str(self.weights), "prompts": prompts, "new": new, "threads": self.threads}
        return self._once(f"sample-{batch}", job)

    def facts(self) -> dict[str, Any]:
        """Card and libraries, and the driver where nvidia-smi says it."""
        found = dict(self._once("facts", {"kind": "facts"}))
        for name in LIBRARIES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        return {**found, "driver": _driver(), "model": self.model}

    def _rows(self) -> list[dict[str, list[int]]]:
        return text_rows(self.weights, self.length) if self.rows is None else self.rows

    def _training(self, engine: str, method: str, interpreter: bool, changes: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": "train",
            "engine": engine,
            "model": self.model,
            "folder": str(self.weights),
            "rows": self._rows(),
            "train": training_settings(method, self.length, **changes).model_dump(mode="json"),
            "threads": self.threads,
            "interpreter": interpreter,
        }

    def _name(self, engine: str, method: str, changes: dict[str, Any]) -> str:
        return "-".join([engine, method, *(f"{key}{value}" for key, value in changes.items())])

    def _once(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        if name not in self.answers:
            code, words = self._run(name, job)
            if code != 0:
                raise AssertionError(f"{name} ended with {code}:\n{words}")
            self.answers[name] = json.loads(words.splitlines()[-1])
        return self.answers[name]

    def _run(self, name: str, job: dict[str, Any]) -> tuple[int, str]:
        """Exit code, and stdout where that is 0, else the end of what it wrote."""
        out = self.folder / name
        out.mkdir(parents=True, exist_ok=True)
        file = out / "job.json"
        file.write_text(json.dumps({**job, "out": str(out)}), encoding="utf-8")
        paths = os.pathsep.join([str(HERE), str(HERE.parent)])
        done = subprocess.run(
            [sys.executable, str(HERE / "card_process.py"), str(file)],
            capture_output=True, text=True, timeout=1800, check=False, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        return done.returncode, done.stdout if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def whole_run(folder: Path, model: str, settings: Sequence[str]) -> dict[str, Any]:
    """`ssd-lite run` from sampling to the report, cut small; gives the run's manifest."""
    short = [
        f"model.name={model}", "problems.train_limit=12", "problems.evaluate_limit=4", "sample.max_new_tokens=96",
        "sample.batch_size=12", "curate.cut_off=keep", "curate.drop_stubs=false", "train.max_steps=3",
        "evaluate.n=1", "evaluate.k=[1]", "evaluate.max_new_tokens=48", "merge.check_prompts=4", "export.types=[q8_0]",
        "export.check=false",
    ]  # fmt: skip
    words = [part for setting in [*short, *settings] for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "ssd_lite", "run", "quickstart", "--out", str(folder), *words],
        capture_output=True, text=True, timeout=1800, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"ssd-lite run ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def _driver() -> str | None:
    """The driver's version, None where nvidia-smi cannot be asked."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None
