"""What a run puts on the disk, in the order it does, and the most that lies there at once."""

from __future__ import annotations

from dataclasses import dataclass

from ssd_lite.plan.sampling_memory import gguf_bytes
from ssd_lite.plan.shapes import Shape
from ssd_lite.plan.training_memory import optimiser_bytes, trained_parameters
from ssd_lite.plan.work import Load, Range, training_tokens
from ssd_lite.recipe import Recipe
from ssd_lite.recipe_section import UNAFFECTED

# Of the quickstart's samples: bytes a drawn token in samples.jsonl, in targets/ and in train.jsonl (docs/training.md).
SAMPLE_BYTES, TARGET_BYTES, ROW_BYTES = 15.8, 14.3, 8.0
# engines/gguf/read.py dequantises to float32 up to this many weights.
FLOAT32_UP_TO = 10**9
CHECKPOINTS_AT_ONCE = 3  # two are kept, and a third is whole before the oldest goes
_FORMAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Written:
    """`bytes` that stay after a stage, and `passing` bytes that lie there beside them for a while."""

    stage: str
    what: str
    bytes: int
    passing: int = 0


def written(recipe: Recipe, shape: Shape, kind: str, load: Load, *, llama_cpp: tuple[bool, bool]) -> list[Written]:
    """Everything a run writes, in order, its caches included.

    `kind` is that of the base: "hub" is fetched, "packaged" and "gguf" are dequantised once, "folder" is there already.
    `llama_cpp` says whether sampling and evaluation run there, and so need a GGUF of the base and of the tuned model.
    """
    trained = trained_parameters(shape, recipe.train)
    checkpoint = 4 * trained + optimiser_bytes(recipe.train, trained)
    merged = shape.parameters * _FORMAT_BYTES.get(recipe.merge.dtype, _base_number(shape, kind))
    own_type, types = recipe.model.gguf_type, list(dict.fromkeys([*recipe.export.types, *recipe.evaluate.gguf]))
    own = gguf_bytes(shape, own_type)
    drawn = _drawn(recipe, load)
    tokens = training_tokens(recipe, load)[1] / max(1.0, recipe.train.num_train_epochs)
    found = [Written("sample", "base model", _fetched(shape, kind))]
    if any(llama_cpp):
        found.append(Written("sample" if llama_cpp[0] else "evaluate", f"base as {own_type} GGUF", own))
    found += [
        Written("sample", "samples" + (" and targets" if recipe.sample.keeps_targets else ""), int(drawn)),
        Written("curate", "training rows", int(tokens * ROW_BYTES)),
        Written("train", "checkpoints", 2 * checkpoint, (CHECKPOINTS_AT_ONCE - 2) * checkpoint),
        Written("train", "adapter" if recipe.train.method != "full" else "trained weights", 4 * trained),
        Written("merge", "merged model", merged),
    ]
    if llama_cpp[1]:
        found.append(Written("evaluate", f"tuned as {own_type} GGUF", own))
    left = [name for name in types if not (llama_cpp[1] and name == own_type)]
    # stages/exports/files.py: llama.cpp computes a matrix with a q8_0, removed after unless it was asked for.
    matrix = recipe.export.imatrix and any(name not in UNAFFECTED for name in types)
    passing = gguf_bytes(shape, "q8_0") if matrix and "q8_0" not in types else 0
    found += _further_rounds(recipe, found, own if llama_cpp[0] else 0)
    found.append(Written("export", ", ".join(types), sum(gguf_bytes(shape, name) for name in left), passing))
    return [entry for entry in found if entry.bytes or entry.passing]


def _further_rounds(recipe: Recipe, first: list[Written], gguf: int) -> list[Written]:
    """Every round stays: what the first wrote from sampling to evaluating, the base apart."""
    if recipe.rounds == 1:
        return []
    again = [entry for entry in first if not entry.what.startswith("base")]
    size = sum(entry.bytes for entry in again) + gguf
    most = max(entry.passing for entry in first)
    return [Written("rounds", f"rounds 2 to {recipe.rounds}", (recipe.rounds - 1) * size, most)]


def high_water_mark(entries: list[Written]) -> int:
    """Most bytes that lie on the disk at once."""
    lying = peak = 0
    for entry in entries:
        lying += entry.bytes
        peak = max(peak, lying + entry.passing)
    return peak


def _base_number(shape: Shape, kind: str) -> int:
    """Bytes a number of the base's folder."""
    if kind in ("packaged", "gguf"):
        return 4 if shape.parameters <= FLOAT32_UP_TO else 2
    return shape.weight_bytes


def _fetched(shape: Shape, kind: str) -> int:
    return 0 if kind == "folder" else shape.parameters * _base_number(shape, kind)


def _drawn(recipe: Recipe, load: Load) -> float:
    count = load.train.count * recipe.sample.n
    tokens: Range = load.completion(recipe.sample.max_new_tokens)
    return count * tokens[1] * (SAMPLE_BYTES + (TARGET_BYTES if recipe.sample.keeps_targets else 0))
