"""The texts on which exported files are measured: a run's held-out completions, or the starter set's solutions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.journal import read_records
from ssd_lite.problems.starter import load_starter
from ssd_lite.records import Sample, sample_from_json
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.report_findings import evenly_spaced

if TYPE_CHECKING:
    from ssd_lite.engines.scoring.scorer import Text
    from ssd_lite.engines.tokenizer import ChatTokenizer

# What bounds the cost: each model reads at most so many tokens, and no text counts longer than this.
MOST_TOKENS = 2048
MOST_TEXTS = 24
LONGEST_COMPLETION = 256
MOST_POSITIONS = 1024


@dataclass(frozen=True)
class CheckTexts:
    """Prompts with completions, and in words where they come from."""

    texts: Sequence[Text]
    words: str

    @property
    def tokens(self) -> int:
        """Tokens that a model reads."""
        return sum(len(text.ids) for text in self.texts)

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {"words": self.words, "count": len(self.texts), "tokens": self.tokens}


def run_texts(run: RunFolder, folder: Path) -> CheckTexts | None:
    """Completions of a run that were not trained on; None where it has none.

    First choice: what the tuned model wrote to the evaluation's problems, because quantising matters where it decodes.
    """
    if found := arm_texts(run, "tuned", folder):
        return found
    if not run.samples.is_file():
        return None
    trained = set()
    if run.train_rows.is_file():
        rows = (json.loads(line) for line in run.train_rows.read_text(encoding="utf-8").splitlines())
        trained = {(row["problem_id"], row["index"]) for row in rows}
    unused = [r for r in read_records(run.samples) if (r["problem_id"], r["index"]) not in trained]
    return _bounded(_pairs(unused), folder, "samples that were not trained on")


def arm_texts(run: RunFolder, arm: str, folder: Path) -> CheckTexts | None:
    """The first completion of an arm to each problem of the evaluation; None where it has not answered."""
    evaluated = run.path / "evaluations" / arm / "samples.jsonl"
    firsts = [r for r in read_records(evaluated) if r["index"] == 0] if evaluated.is_file() else []
    return _bounded(_pairs(firsts), folder, f"completions of the {arm} model to problems of the evaluation")


def starter_texts(tokenizer: ChatTokenizer, folder: Path) -> CheckTexts | None:
    """The golden solutions of the starter set's evaluation half, each behind its prompt as the model reads it.

    None where the model's context is too short for any.
    """
    pairs = []
    for problem in load_starter("evaluate"):
        answer = f"```python\n{problem.golden}```"
        if tokenizer.chat_template is None:
            ids = tokenizer.encode(f"{problem.messages[-1]['content']}\n\n{answer}")
            pairs.append((tuple(ids[:1]), tuple(ids[1:])))
        else:
            prompt = tokenizer.render(problem.messages)[1]
            pairs.append((tuple(prompt), (*tokenizer.encode(answer), tokenizer.end_id)))
    return _bounded(pairs, folder, "golden solutions of the starter set")


def _pairs(records: Sequence[dict[str, Any]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    samples: list[Sample] = [sample_from_json(record) for record in records]
    return [(sample.prompt_ids, sample.completion_ids) for sample in samples]


def context_length(folder: Path) -> int | None:
    """Tokens that the model in `folder` takes at once, by its config.json; None where that does not say."""
    return _config(folder).get("max_position_embeddings")


def _config(folder: Path) -> dict[str, Any]:
    from ssd_lite.engines.weights.model_folder import read_json

    config: dict[str, Any] = read_json(folder / "config.json")
    return config.get("text_config") or config


def _bounded(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], folder: Path, words: str) -> CheckTexts | None:
    """As many of the pairs as the bounds allow, at even distances through the set."""
    from ssd_lite.engines.checks.gguf_measures import most_positions
    from ssd_lite.engines.scoring.scorer import Text, spread_positions

    longest = min(MOST_TOKENS, context_length(folder) or MOST_TOKENS)
    most = min(LONGEST_COMPLETION, longest // 2)  # in a short context half is left to the prompt
    whole = [(p, c[:most]) for p, c in pairs if len(p) + most <= longest and c[:most]]
    chosen = [whole[index] for index in evenly_spaced(len(whole), MOST_TEXTS)]
    taken, tokens = [], 0
    for index in _spread_order(len(chosen)):
        length = len(chosen[index][0]) + len(chosen[index][1]) - 1
        if tokens + length <= MOST_TOKENS:
            taken.append(chosen[index])
            tokens += length
    if not taken:
        return None
    each = max(1, most_positions(int(_config(folder)["vocab_size"]), MOST_POSITIONS) // len(taken))
    texts = [Text(prompt, completion, spread_positions(len(completion), each)) for prompt, completion in taken]
    return CheckTexts(texts, words)


def _spread_order(count: int) -> list[int]:
    """Indices in an order whose every beginning lies spread over the whole: the middle first, then the middles of both
    halves, and so on."""
    order: list[int] = []
    parts = [(0, count)]
    while parts:
        low, high = parts.pop(0)
        if low < high:
            middle = (low + high) // 2
            order.append(middle)
            parts += [(low, middle), (middle + 1, high)]
    return order
