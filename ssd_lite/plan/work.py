"""How much a recipe has to compute, in tokens, and how long that takes on a machine: a low and a high guess each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssd_lite.plan.cards import Machine
from ssd_lite.plan.sampling_memory import gguf_bytes, llama_slots, server_slots
from ssd_lite.plan.shapes import Shape
from ssd_lite.recipe import Recipe, Train

# All of these are guesses, low and high; docs/plan.md says from where. Shares of a card's stated rate that work gets.
TRAINING_SHARE, QLORA_SHARE, PREFILL_SHARE = (0.20, 0.43), (0.15, 0.40), (0.20, 0.50)
BANDWIDTH_SHARE = (0.30, 0.70)
# Starting the kernels of one layer of a decoded token: from Python in transformers, in C++ in llama.cpp. Seconds.
HF_LAYER_S, LLAMA_LAYER_S = (0.3e-3, 1.0e-3), (0.01e-3, 0.05e-3)
# The measured rate of a machine without a card, times this.
CPU_SHARE, CPU_DECODE_SHARE = (0.6, 1.3), (0.35, 0.8)
# Mean completion as a share of the token cap: 0.38 and 0.41 in the quickstart (docs/results.md).
MEAN_SHARE = (0.2, 0.6)
# transformers' cache grows by copying: it is read, written and read again in each step.
HF_CACHE_PASSES = 3
LONGEST_OF_A_BATCH = (1.5, 3.0)
LOAD_BYTES_PER_S = (0.5e9, 2e9)
MERGE_BYTES_PER_S, EXPORT_WEIGHTS_PER_S = (0.1e9, 0.4e9), (30e6, 200e6)

Range = tuple[float, float]


@dataclass(frozen=True)
class Prompts:
    """How many prompts a problem set has and their tokens, mean and longest; `note` where one of them is a guess."""

    count: int
    mean: int
    longest: int
    note: str = ""


@dataclass(frozen=True)
class Load:
    """What a plan is made for beside the recipe: the prompts, and the mean completion where it is known."""

    train: Prompts
    evaluate: Prompts
    mean_tokens: int | None = None

    def completion(self, cap: int) -> Range:
        """Mean tokens of a completion under a cap, low and high."""
        if self.mean_tokens is not None:
            return (min(self.mean_tokens, cap), min(self.mean_tokens, cap))
        return (MEAN_SHARE[0] * cap, MEAN_SHARE[1] * cap)


def optimiser_steps(train: Train, rows: int) -> int:
    """Steps of a training on so many samples."""
    step = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return train.max_steps or max(1, math.ceil(max(1, round(rows * train.num_train_epochs)) / step))


def training_tokens(recipe: Recipe, load: Load) -> Range:
    """Tokens read while training, padding not counted; every sample counts, curation drops some."""
    train, rows = recipe.train, load.train.count * recipe.sample.n
    samples = rows * train.num_train_epochs
    if train.max_steps is not None:
        samples = train.max_steps * train.per_device_train_batch_size * train.gradient_accumulation_steps
    low, high = load.completion(recipe.sample.max_new_tokens)
    return (
        samples * min(low + load.train.mean, train.max_length),
        samples * min(high + load.train.mean, train.max_length),
    )


def dropped_rows(recipe: Recipe, load: Load) -> str:
    """A warning where curate would drop many of the rows that are sampled: it cuts none to train.max_length."""
    low, high = (load.train.mean + mean for mean in load.completion(recipe.sample.max_new_tokens))
    longest = recipe.train.max_length
    if longest >= high or recipe.train.grpo is not None:
        return ""
    share = "most" if longest < low else "many"
    return (
        f"curate drops rows longer than train.max_length, here {longest:,} tokens; a mean row is guessed at "
        f"{low:,.0f} to {high:,.0f}, so {share} of what is sampled would not be trained on"
    )


def training_flops_per_token(shape: Shape, train: Train, length: float) -> float:
    """Operations a token: 2 a weight forward, 2 backward for the activations, in full fine-tuning 2 for the weights.

    Recomputing adds a forward pass. Attention: scores and values, 2 x 2 x width x (length / 2) forward, twice that
    backward. Source of 2 a weight and pass: Kaplan et al., arXiv 2001.08361, section 2.1.
    """
    again = 2 if train.gradient_checkpointing else 1
    weights = shape.linear_parameters + shape.embedding_parameters  # the head, tied or not
    per_weight = 2 * again + (4 if train.method == "full" else 2)
    attention = 2 * shape.layers * shape.query_width * length * (again + 2)
    return per_weight * weights + attention


def training_seconds(recipe: Recipe, shape: Shape, load: Load, machine: Machine) -> Range:
    """Low and high seconds of the training."""
    tokens = training_tokens(recipe, load)
    length = load.completion(recipe.sample.max_new_tokens)
    share = CPU_SHARE if not machine.on_card else QLORA_SHARE if recipe.train.method == "qlora" else TRAINING_SHARE
    low, high = (
        amount * training_flops_per_token(shape, recipe.train, mean + load.train.mean) / (machine.flops * part)
        for amount, mean, part in zip(tokens, length, reversed(share), strict=True)
    )
    return low, high


@dataclass(frozen=True)
class Decoding:
    """One pass of sampling: which engine, `each` completions of which prompts, under which cap and batch.

    `gguf_type` is that of the weights, "" where they are 16-bit in a folder.
    """

    engine: str
    prompts: Prompts
    each: int
    cap: int
    batch: int
    gguf_type: str

    @property
    def completions(self) -> int:
        return self.prompts.count * self.each

    def weight_bytes(self, shape: Shape, machine: Machine) -> int:
        """Bytes of the weights that a step reads."""
        if self.engine == "hf" or not self.gguf_type:
            return shape.parameters * (2 if machine.on_card or self.engine != "hf" else 4)
        return gguf_bytes(shape, self.gguf_type)


def decoding_tokens(work: Decoding, load: Load) -> Range:
    """Tokens drawn, low and high."""
    low, high = load.completion(work.cap)
    return work.completions * low, work.completions * high


def decoding_seconds(work: Decoding, shape: Shape, load: Load, machine: Machine) -> Range:
    """Low and high seconds to draw all completions.

    A step reads the weights and the cache, or computes, whichever takes longer, and starts its kernels. hf waits for
    the longest completion of a batch: 1.5 to 3 times the mean. llama.cpp and a server replace one that ends.
    """
    means = load.completion(work.cap)
    slots: float
    if work.engine == "hf":
        slots = min(work.batch, work.completions)
        longest = tuple(min(work.cap, factor * mean) for factor, mean in zip(LONGEST_OF_A_BATCH, means, strict=True))
        rounds = math.ceil(work.completions / slots)
        ends = longest if slots > 1 else means
        steps = (rounds * ends[0], rounds * ends[1])
    else:
        slots = min(_slots(work, shape, means[1], machine), work.completions)
        steps = (work.completions * means[0] / slots, work.completions * means[1] / slots)
    low = steps[0] * _step_seconds(work, shape, machine, slots, means[0], best=True)
    high = steps[1] * _step_seconds(work, shape, machine, slots, means[1], best=False)
    shares = PREFILL_SHARE if machine.on_card else CPU_DECODE_SHARE
    read = work.completions if work.engine == "hf" else work.prompts.count  # llama.cpp computes a prompt once
    prefill = 2 * shape.parameters * read * work.prompts.mean / machine.flops
    return low + prefill / shares[1], high + prefill / shares[0]


def _slots(work: Decoding, shape: Shape, mean: float, machine: Machine) -> float:
    if work.engine == "server" and machine.on_card:
        tokens = work.prompts.mean + mean
        return server_slots(shape, work.batch, tokens, work.weight_bytes(shape, machine), machine.memory_bytes)
    return llama_slots(shape, work.batch, work.prompts.longest + work.cap)


def _step_seconds(work: Decoding, shape: Shape, machine: Machine, slots: float, mean: float, *, best: bool) -> float:
    number = 2 if machine.on_card or work.engine != "hf" else 4
    weights = work.weight_bytes(shape, machine)
    cache = slots * (work.prompts.mean + mean / 2) * shape.kv_numbers_per_token * number
    which = 1 if best else 0
    layer = HF_LAYER_S if work.engine == "hf" else LLAMA_LAYER_S
    compute_share = (PREFILL_SHARE if machine.on_card else CPU_DECODE_SHARE)[which]
    passes = HF_CACHE_PASSES if work.engine == "hf" else 1
    reading = (weights + passes * cache) / (machine.bandwidth * BANDWIDTH_SHARE[which])
    computing = 2 * shape.parameters * slots / (machine.flops * compute_share)
    starting = shape.layers * layer[1 - which] if machine.on_card else 0.0
    return max(reading, computing) + starting


def seconds_for(amount: float, rate: Range) -> Range:
    """Low and high seconds for an amount at a rate (low, high)."""
    return amount / rate[1], amount / rate[0]
