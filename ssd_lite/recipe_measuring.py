"""The sections of a recipe that measure: evaluate with its guard, compare, report."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from ssd_lite.recipe_section import Decoding, GgufType, MinP, Positive, Section, Seed, Share, Temperature, TopP

TrainedArm = Literal["ssd", "soft", "null_arm", "rft", "distill", "grpo"]


class Guard(Section):
    """A set that must not get worse: base against tuned, each under its decoding of section evaluate."""

    problems: str = Field(min_length=1)
    """A problem set with tests, or questions:FILE.jsonl (question and answer a line, GSM8K's form included)."""
    n: Positive = 1
    """Completions a problem or question."""
    limit: Positive | None = None
    """Take only so many, drawn with evaluate.seed; null takes all."""
    max_new_tokens: Positive | None = None
    """Token cap; null takes evaluate.max_new_tokens."""


class Evaluate(Section):
    """Base against tuned, each under its own decoding, on the same problems."""

    engine: Literal["auto", "hf", "llama_cpp", "server"] = "auto"
    """auto: hf on a CUDA card, llama_cpp without one; server: the one that section server starts."""
    n: Positive = 10
    """Completions a problem."""
    k: Annotated[list[Positive], Field(min_length=1)] = [1, 5]
    """pass@k for these k; each at most n."""
    base: Decoding = Decoding(temperature=0.7)
    """Decoding of the base model."""
    tuned: Decoding = Decoding(temperature=1.1)
    """Decoding of the tuned model (T_eval)."""
    max_new_tokens: Positive = 8192
    """Token cap of one completion."""
    batch_size: Positive = 16
    """Completions that are decoded at once."""
    seed: Seed = 1
    """Common seed of all arms."""
    block: Literal["last", "first", "whole"] = "last"
    """Which fenced block is the program."""
    sandbox: Literal["auto", "bubblewrap", "landlock", "none"] = "auto"
    """Isolation of the graded programs; none runs them with your rights and must be asked for."""
    gguf: list[GgufType] = []
    """Types of the tuned model's GGUF that answer the same problems under `tuned`: what quantising costs. Needs
    llama.cpp, whatever `engine` says."""
    guard: list[Guard] = []
    """Other sets on which the tuned model must not fall behind; `--strict` fails on a drop beyond its interval."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Evaluate:
        if max(self.k) > self.n:
            raise ValueError(f"pass@{max(self.k)} needs n of at least {max(self.k)} samples a problem, n is {self.n}")
        return self


class Grid(Section):
    """Decodings that are tried on the dev split: every combination of these values; top-k is that of evaluate."""

    temperature: Annotated[list[Temperature], Field(min_length=1)] = [0.3, 0.6, 0.9, 1.2]
    """Temperatures."""
    top_p: Annotated[list[TopP], Field(min_length=1)] = [0.8, 0.95]
    """Nucleus masses."""
    min_p: Annotated[list[MinP], Field(min_length=1)] = [0.0]
    """Minimal shares of the likeliest token's probability."""


class Compare(Section):
    """`ssd-lite compare`: which models are trained beside SSD, and how decodings are chosen and judged."""

    arms: Annotated[list[TrainedArm], Field(min_length=1)] = ["ssd", "soft", "null_arm", "rft"]
    """Trained arms: ssd, soft (on q itself), null_arm (T 1, no truncation), rft (samples that pass), distill, grpo."""
    variants: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], list[str]] = {}
    """Further arms of your own: a name, and what differs from SSD as `--set` takes it, `full: [train.method=full]`.
    Sections sample, curate, train and merge, problems.train and problems.train_limit; all are evaluated alike."""
    best: list[str] = ["ssd"]
    """Trained arms that also get their best decoding of the grid; the base always does."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Each arm is sampled and trained once with each of these; evaluation always uses evaluate.seed."""
    grid: Grid = Grid()
    """Decodings tried on the dev split."""
    dev_share: Share = 0.4
    """Share of the evaluation problems that choose decodings; the rest is reported. Split with evaluate.seed."""
    dev_n: Positive = 4
    """Completions a problem of the dev split, of each trained model; the base gets as many as all seeds of an arm."""
    limit: Positive | None = None
    """Take only so many evaluation problems, dev and test together; null takes the whole set. problems.evaluate_limit
    and evaluate.guard are for `ssd-lite run`, and a comparison does not look at them."""
    teacher: str | None = None
    """Model whose samples the arm distill trains on: packaged name, folder, GGUF or Hub id."""
    extra_sets: list[str] = []
    """Further problem sets on which every arm is reported at the decodings that were chosen."""
    extra_n: Positive = 1
    """Completions a problem of those sets."""

    @model_validator(mode="after")
    def _arms_are_named_once(self) -> Compare:
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds: {repeated[0]} stands twice; a seed gives the same model each time")
        known = {*get_args(TrainedArm), "base"}
        if taken := sorted(known & set(self.variants)):
            raise ValueError(f"variants: {taken[0]} is an arm already; take another name")
        if unknown := [arm for arm in self.best if arm not in (*self.arms, *self.variants)]:
            raise ValueError(f"best: {unknown[0]} is not among compare.arms and compare.variants")
        return self


class Report(Section):
    """report.html and the model card."""

    pairs: Annotated[int, Field(ge=0, le=50)] = 4
    """Sample pairs (base, tuned) shown side by side."""
