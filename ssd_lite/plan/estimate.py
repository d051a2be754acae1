"""The plan of a recipe on a machine: memory by term, tokens and hours of each stage, disk, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ssd_lite.plan import sampling_memory as sampling
from ssd_lite.plan import training_memory as training
from ssd_lite.plan import work
from ssd_lite.plan.cards import Machine
from ssd_lite.plan.disk import Written, high_water_mark, written
from ssd_lite.plan.shapes import Shape
from ssd_lite.plan.training_memory import Terms
from ssd_lite.plan.work import Decoding, Load, Prompts, Range
from ssd_lite.recipe import Recipe

# safetensors shards on the Hub are rarely larger; one at a time is read while a base is quantised.
SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Model:
    """The base: its shape and what it is, "hub", "packaged", "gguf" or "folder"."""

    name: str
    shape: Shape
    kind: str


@dataclass(frozen=True)
class StagePlan:
    """One stage. `terms` are bytes on the card, or on the host where there is none; `tokens` None where none count."""

    gpu_peak_bytes: int
    host_peak_bytes: int
    terms: Terms
    tokens: Range | None
    seconds: Range
    completions: int = 0


@dataclass(frozen=True)
class Limits:
    """What a machine has beside its card, None where nobody said."""

    ram_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine. `reasons` says, a line each, why it does not fit; empty where it does."""

    recipe: Recipe
    machine: Machine
    stages: Mapping[str, StagePlan]
    disk: tuple[Written, ...]
    reasons: tuple[tuple[str, str], ...]

    @property
    def fits(self) -> bool:
        return not self.reasons

    @property
    def disk_peak_bytes(self) -> int:
        return high_water_mark(list(self.disk))

    @property
    def host_peak_bytes(self) -> int:
        return max(stage.host_peak_bytes for stage in self.stages.values())

    @property
    def gpu_peak_bytes(self) -> int:
        return max(stage.gpu_peak_bytes for stage in self.stages.values())

    @property
    def seconds(self) -> Range:
        """Low and high of the whole run."""
        low, high = (sum(stage.seconds[end] for stage in self.stages.values()) for end in (0, 1))
        return low, high


def plan(recipe: Recipe, model: Model, load: Load, machine: Machine, limits: Limits = Limits()) -> Plan:
    """The plan. Arithmetic only; what the formulas follow stands in the files of this folder and in docs/plan.md."""
    engines = tuple(_engine(wanted, machine) for wanted in (recipe.sample.engine, recipe.evaluate.engine))
    stages = {
        "sample": _decoding(recipe, model.shape, load, machine, _sample_work(recipe, load, engines[0]), passes=1),
        "train": _training(recipe, model.shape, load, machine),
        "merge": _merging(recipe, model.shape),
        "evaluate": _decoding(
            recipe,
            model.shape,
            load,
            machine,
            _evaluate_work(recipe, load, engines[1]),
            passes=2 + _gguf_arms(recipe, engines[1]),
        ),
        "export": _exporting(recipe, model.shape),
    }
    stages = {name: _in_rounds(stage, name, recipe.rounds) for name, stage in stages.items()}
    on_llama = (recipe.server.takes_gguf(engines[0]), recipe.server.takes_gguf(engines[1]))
    disk = tuple(written(recipe, model.shape, model.kind, load, llama_cpp=on_llama))
    reasons = _reasons(recipe, model.shape, stages, machine, limits, high_water_mark(list(disk)))
    return Plan(recipe, machine, stages, disk, tuple(reasons))


def _in_rounds(stage: StagePlan, name: str, rounds: int) -> StagePlan:
    """Tokens and time of all rounds: later ones have the base's answers already; only the best is exported."""
    if rounds == 1:
        return stage
    times = {"evaluate": (rounds + 1) / 2, "export": 2.0}.get(name, float(rounds))
    tokens = None if stage.tokens is None else (times * stage.tokens[0], times * stage.tokens[1])
    return replace(stage, tokens=tokens, seconds=(times * stage.seconds[0], times * stage.seconds[1]))


def row_tokens(recipe: Recipe, prompts: Prompts) -> int:
    """Tokens of the longest training row: the longest prompt with a completion at the cap, within train.max_length."""
    return min(recipe.train.max_length, prompts.longest + recipe.sample.max_new_tokens)


def _engine(wanted: str, machine: Machine) -> str:
    if wanted != "auto":
        return wanted
    return "hf" if machine.on_card else "llama_cpp"


def _sample_work(recipe: Recipe, load: Load, engine: str) -> Decoding:
    part, gguf_type = recipe.sample, recipe.model.gguf_type if recipe.server.takes_gguf(engine) else ""
    return Decoding(engine, load.train, part.n, part.max_new_tokens, part.batch_size, gguf_type)


def _evaluate_work(recipe: Recipe, load: Load, engine: str) -> Decoding:
    part, gguf_type = recipe.evaluate, recipe.model.gguf_type if recipe.server.takes_gguf(engine) else ""
    return Decoding(engine, load.evaluate, part.n, part.max_new_tokens, part.batch_size, gguf_type)


def _gguf_arms(recipe: Recipe, engine: str) -> int:
    """Arms beside base and tuned: the types of evaluate.gguf but for that which the arm tuned runs itself."""
    return len(set(recipe.evaluate.gguf) - ({recipe.model.gguf_type} if engine == "llama_cpp" else set()))


def _decoding(recipe: Recipe, shape: Shape, load: Load, machine: Machine, todo: Decoding, *, passes: int) -> StagePlan:
    length = todo.prompts.longest + todo.cap
    batch = min(todo.batch, todo.completions)
    if todo.engine == "hf":
        terms = sampling.hf_terms(shape, batch, todo.prompts.longest, length, on_card=machine.on_card)
    elif todo.engine == "server" and machine.on_card:
        mean = todo.prompts.mean + load.completion(todo.cap)[1]
        weights = todo.weight_bytes(shape, machine)
        terms = sampling.server_terms(shape, batch, length, mean, weights, machine.memory_bytes)
    else:
        terms = sampling.llama_terms(shape, batch, length, todo.gguf_type or "f16", on_card=machine.on_card)
        if not machine.on_card:
            terms["workspace"] += sampling.TORCH_IMPORTS_BYTES
    seconds = work.decoding_seconds(todo, shape, load, machine)
    loading = work.seconds_for(terms["weights"], work.LOAD_BYTES_PER_S)
    tokens = work.decoding_tokens(todo, load)
    peak = sum(terms.values())
    host = sampling.CARD_HOST_BYTES + terms["weights"] if machine.on_card else peak
    if todo.gguf_type:  # the base, and later the tuned model, are quantised first
        host = max(host, sampling.export_host_bytes(shape, [recipe.model.gguf_type]))
    return StagePlan(
        peak if machine.on_card else 0,
        host,
        terms,
        (passes * tokens[0], passes * tokens[1]),
        (passes * (seconds[0] + loading[0]), passes * (seconds[1] + loading[1])),
        todo.completions,
    )


def _training(recipe: Recipe, shape: Shape, load: Load, machine: Machine) -> StagePlan:
    train = recipe.train
    tokens = train.per_device_train_batch_size * row_tokens(recipe, load.train)
    terms = training.training_terms(shape, train, tokens, on_card=machine.on_card)
    seconds = work.training_seconds(recipe, shape, load, machine)
    loading = work.seconds_for(shape.parameters * shape.weight_bytes, work.LOAD_BYTES_PER_S)
    peak = sum(terms.values())
    host = peak
    if machine.on_card:
        plain = shape.parameters * (4 if train.method == "full" else 2)
        # A base is loaded on the host and moved; one that is quantised goes shard by shard.
        host = sampling.CARD_HOST_BYTES + (min(plain, SHARD_BYTES) if train.method == "qlora" else plain)
    return StagePlan(
        peak if machine.on_card else 0,
        host,
        terms,
        work.training_tokens(recipe, load),
        (seconds[0] + loading[0], seconds[1] + loading[1]),
    )


def _merging(recipe: Recipe, shape: Shape) -> StagePlan:
    written_bytes = shape.parameters * shape.weight_bytes
    return StagePlan(
        0, sampling.merge_host_bytes(shape), {}, None, work.seconds_for(written_bytes, work.MERGE_BYTES_PER_S)
    )


def _exporting(recipe: Recipe, shape: Shape) -> StagePlan:
    types = recipe.export.types
    seconds = work.seconds_for(shape.parameters * len(types), work.EXPORT_WEIGHTS_PER_S)
    host = sampling.export_host_bytes(shape, types)
    if recipe.export.imatrix:
        host = max(host, sampling.imatrix_host_bytes(shape))
    return StagePlan(0, host, {}, None, seconds)


def _reasons(
    recipe: Recipe, shape: Shape, stages: Mapping[str, StagePlan], machine: Machine, limits: Limits, disk: int
) -> list[tuple[str, str]]:
    """(stage or resource, why) for all that does not fit."""
    found = [
        (name, f"{name} needs {_exact(stage.gpu_peak_bytes)} of the card's {_exact(machine.memory_bytes)} GiB")
        for name, stage in stages.items()
        if machine.on_card and stage.gpu_peak_bytes > machine.memory_bytes
    ]
    for name, cap in (("sample", recipe.sample.max_new_tokens), ("evaluate", recipe.evaluate.max_new_tokens)):
        if shape.context and cap >= shape.context:
            found.append(
                (name, f"{name}.max_new_tokens {cap} leaves no room for a prompt in the context of {shape.context}")
            )
    for name, stage in stages.items():
        if limits.ram_bytes is not None and stage.host_peak_bytes > limits.ram_bytes:
            found.append((name, f"{name} needs {gib(stage.host_peak_bytes)} of the host's {gib(limits.ram_bytes)}"))
    if limits.disk_bytes is not None and disk > limits.disk_bytes:
        found.append(("disk", f"the run puts {gib(disk)} on the disk, which has {gib(limits.disk_bytes)}"))
    return found


def _exact(size: int) -> str:
    return f"{size / 2**30:.2f}"


def gib(size: float) -> str:
    """Bytes for people: `12.3 GiB`, below 0.1 GiB `37 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.0f} MiB"
