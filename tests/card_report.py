"""What was measured on a card beside what the plan says: what is wrong with it, and the block that a person pastes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from card_jobs import LIBRARIES, WARM_UP_STEPS

from ssd_lite.plan import sampling_memory as sampling
from ssd_lite.plan import training_memory as training
from ssd_lite.plan import work
from ssd_lite.plan.cards import Machine, card_called
from ssd_lite.plan.shapes import Shape
from ssd_lite.plan.training_memory import CONTEXT_BYTES, Terms
from ssd_lite.plan.work import Decoding, Load, Prompts, Range
from ssd_lite.recipe import Train

MIB = 2**20
# The first loss is that of the base, whose adapter adds nothing yet: two roundings to bfloat16 of one network. Later
# ones are of two trainings that round differently, so they drift. Both are guesses that no card has tried. On a CPU,
# float16 against float32, 1.5e-4 was seen (test_unsloth_training.py); test_card_process.py tells another alpha apart.
FIRST_LOSS, LAST_LOSS = 0.01, 0.03
# docs/plan.md: a plan that fits by less than a tenth may not fit.
PLAN_SLACK = 1.10
# Shows on small models only: torch takes blocks of 2 and 20 MiB and holds cuBLAS's workspaces (8 to 32 MiB) itself.
ALLOCATOR_BYTES = 64 * MIB
LAST = 3  # steps whose mean is the last loss


@dataclass(frozen=True)
class Training:
    """A training as card_process answers, and what it was asked."""

    engine: str
    settings: Train
    answer: Mapping[str, Any]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.answer["steps"]]

    @property
    def last_loss(self) -> float:
        return statistics.fmean(self.losses[-LAST:])

    @property
    def tokens_per_s(self) -> float:
        """Tokens read a second, padding not counted, without the first steps, in which kernels are made."""
        steps = self.answer["steps"][WARM_UP_STEPS:]
        return sum(step["input_tokens"] for step in steps) / sum(step["seconds"] for step in steps)

    def terms(self, shape: Shape, length: int) -> Terms:
        """The plan's terms for a micro-batch of rows of `length` tokens, on a card."""
        tokens = self.settings.per_device_train_batch_size * length
        return training.training_terms(shape, self.settings, tokens, on_card=True)


@dataclass(frozen=True)
class Sampling:
    """A batch of completions as card_process answers, and what it was asked."""

    batch: int
    prompt: int
    new: int
    answer: Mapping[str, Any]

    @property
    def tokens_per_s(self) -> float:
        return float(self.answer["tokens"] / self.answer["seconds"])

    def terms(self, shape: Shape) -> Terms:
        """The plan's terms, on a card."""
        return sampling.hf_terms(shape, self.batch, self.prompt, self.prompt + self.new, on_card=True)


@dataclass
class Findings:
    """All that the tests of a card found; `proof` are rows of `unsloth_proof.prove`, `notes` lines of any kind."""

    facts: dict[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    length: int = 0
    dry: bool = False
    proof: list[Any] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def loss_complaints(peft: Training, unsloth: Training) -> list[str]:
    """What speaks against the two having been the same training; empty where nothing does."""
    found = []
    if len(peft.losses) != len(unsloth.losses):
        found.append(f"{len(unsloth.losses)} steps instead of {len(peft.losses)}")
    for what, one, other, limit in (
        ("first", peft.losses[0], unsloth.losses[0], FIRST_LOSS),
        ("last", peft.last_loss, unsloth.last_loss, LAST_LOSS),
    ):
        if not abs(one - other) <= limit * one:
            found.append(f"{what} loss {other:.4f}, with PEFT {one:.4f}: more than {100 * limit:g} % apart")
    return found


def course_complaints(one: Training) -> list[str]:
    """Does the loss fall?"""
    if one.last_loss < 0.98 * one.losses[0]:
        return []
    return [f"the loss went from {one.losses[0]:.4f} to {one.last_loss:.4f}, it does not fall"]


def resume_complaints(whole: Training, broken: Training, after: int) -> list[str]:
    """Is a training that was stopped after a step and gone on with the same as one without a break?"""
    found = []
    if not any(f"going on from step {after} " in line for line in broken.answer["said"]):
        found.append(f"it did not go on from step {after}: {broken.answer['said']}")
    if [step["step"] for step in broken.answer["steps"]] != [step["step"] for step in whole.answer["steps"]]:
        found.append("it has other steps")
    elif not all(abs(a - b) <= FIRST_LOSS * a for a, b in zip(whole.losses, broken.losses, strict=True)):
        worst = max(abs(a - b) / a for a, b in zip(whole.losses, broken.losses, strict=True))
        found.append(f"a loss differs by {100 * worst:.1f} %")
    return found


def visible(terms: Terms) -> int:
    """The part of a plan that torch's allocator sees: all but CUDA's context."""
    return sum(terms.values()) - CONTEXT_BYTES


def standing(terms: Terms, settings: Train) -> int:
    """The part that is there between two steps; a paged optimiser's state is outside of torch's allocator."""
    paged = settings.optim.startswith("paged")
    return sum(terms.get(name, 0) for name in ("weights", "adapter", *(() if paged else ("optimiser",))))


def memory_complaints(what: str, reserved: int, terms: Terms) -> list[str]:
    """Did it take more than the plan and the tenth that the plan may be off?"""
    if reserved <= PLAN_SLACK * visible(terms) + ALLOCATOR_BYTES:
        return []
    return [f"{what} took {reserved / MIB:,.0f} MiB, the plan says {visible(terms) / MIB:,.0f} without the context"]


def training_speed(one: Training, shape: Shape, length: int, machine: Machine) -> Range:
    """Tokens a second by the plan, low and high."""
    share = work.QLORA_SHARE if one.settings.method == "qlora" else work.TRAINING_SHARE
    operations = work.training_flops_per_token(shape, one.settings, length)
    return machine.flops * share[0] / operations, machine.flops * share[1] / operations


def sampling_speed(one: Sampling, shape: Shape, machine: Machine) -> Range:
    """Tokens a second by the plan, low and high, where every completion has the same length."""
    prompts = Prompts(one.batch, one.prompt, one.prompt)
    todo = Decoding("hf", prompts, 1, one.new, one.batch, "f16")
    low, high = work.decoding_seconds(todo, shape, Load(prompts, prompts, one.new), machine)
    return one.batch * one.new / high, one.batch * one.new / low


def block(found: Findings) -> str:
    """The block to paste: Markdown, with all that was measured, and what it was measured on."""
    facts = found.facts
    size = f", {facts['card_bytes'] / 2**30:.1f} GiB, compute {facts['capability']}" if "card" in facts else ""
    versions = ", ".join(f"{name} {facts[name] or '-'}" for name in ("torch", "cuda", *LIBRARIES) if name in facts)
    lines = ["DRY RUN on a CPU: no figure below is one of a card.", ""] if found.dry else []
    lines += [
        f"Card: {facts.get('card', 'none')}{size}, driver {facts.get('driver') or '-'}",
        f"Versions: {versions}, Python {facts.get('python', '-')}",
        f"Model: {facts.get('model', '-')}, rows of at most {found.length} tokens",
    ]
    machine = card_called(facts["card"], facts["card_bytes"]) if "card" in facts else None
    parts = [_proof(found.proof), _trainings(found, machine), _samplings(found, machine), found.notes]
    for part in parts:
        lines += ["", *part] if part else []
    return "\n".join(lines)


def _proof(rows: Iterable[Any]) -> list[str]:
    body = [
        f"| {row.case} | {row.loss:.1e} / {row.loss_limit:.1e} | {row.gradient:.1e} / {row.gradient_limit:.1e} | "
        f"{'yes' if row.passed else '**no**'} |"
        for row in rows
    ]
    head = ["| one step, Unsloth | loss off by / limit | gradient off by / limit | held |", "|---|---|---|---|"]
    return [*head, *body] if body else []


def _trainings(found: Findings, machine: Machine | None) -> list[str]:
    if not found.trainings:
        return []
    lines = [
        "| training | loss | tok/s / plan | MiB between steps / plan | MiB at most / plan | plan, MiB by term |",
        "|---|---|---|---|---|---|",
    ]
    for one in found.trainings:
        memory, between, most, terms = one.answer["memory"], "-", "-", "-"
        if found.shape is not None:
            planned = one.terms(found.shape, found.length)
            terms = _terms(planned)
            if memory is not None:
                between = f"{_mib(memory['standing'])} / {_mib(standing(planned, one.settings))}"
                most = f"{_mib(memory['reserved'])} / {_mib(visible(planned))}"
        speed = f"{one.tokens_per_s:,.0f}"
        if machine is not None and found.shape is not None:
            speed += f" / {_range(training_speed(one, found.shape, found.length, machine))}"
        course = f"{one.losses[0]:.3f} to {one.last_loss:.3f}"
        lines.append(f"| {one.engine} {one.settings.method} | {course} | {speed} | {between} | {most} | {terms} |")
    return lines


def _samplings(found: Findings, machine: Machine | None) -> list[str]:
    if not found.samplings:
        return []
    lines = ["| sampling | tok/s / plan | MiB at most / plan | plan, MiB by term |", "|---|---|---|---|"]
    for one in found.samplings:
        memory, speed, most, terms = one.answer["memory"], f"{one.tokens_per_s:,.0f}", "-", "-"
        if found.shape is not None:
            planned = one.terms(found.shape)
            terms = _terms(planned)
            most = f"{_mib(memory['reserved'])} / {_mib(visible(planned))}" if memory is not None else "-"
            if machine is not None:
                speed += f" / {_range(sampling_speed(one, found.shape, machine))}"
        lines.append(f"| hf, {one.batch} x ({one.prompt} + {one.new}) | {speed} | {most} | {terms} |")
    return lines


def outside_note(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the card had in use beside torch's tensors: the context that the plan counts with, and other programs."""
    outside = [answer["memory"]["outside"] for answer in answers if answer["memory"] is not None]
    if not outside:
        return []
    return [
        f"In use beside tensors, other programs included: {_mib(min(outside))} to {_mib(max(outside))} MiB "
        f"(plan: {_mib(CONTEXT_BYTES)})."
    ]


def _terms(terms: Terms) -> str:
    return ", ".join(f"{name} {_mib(size)}" for name, size in terms.items())


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f}"


def _range(speed: Range) -> str:
    return f"{speed[0]:,.0f} to {speed[1]:,.0f}"
