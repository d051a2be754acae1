"""The plan's arithmetic: shapes, terms, fit and advice, and the constants that it must share with the engines."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_tables import measured_cases, planned_bytes, planned_for, published

from ssd_lite.errors import UserError
from ssd_lite.plan import disk, sampling_memory, training_memory
from ssd_lite.plan.advice import larger_batches, make_it_fit, with_changes
from ssd_lite.plan.cards import CPU, Machine, cards, machine
from ssd_lite.plan.estimate import Limits, Model, Plan
from ssd_lite.plan.estimate import plan as estimate
from ssd_lite.plan.prompt_sets import prompts_of
from ssd_lite.plan.shapes import Shape, from_config, packaged_shape, packaged_shapes
from ssd_lite.plan.work import Decoding, Load, Prompts, decoding_seconds, optimiser_steps, training_flops_per_token
from ssd_lite.recipe import Recipe, Train
from ssd_lite.recipe_file import load_recipe, packaged_recipes
from ssd_lite.stages.plan import find_model, load_of

NO_LIMITS = Limits()
LOAD = Load(Prompts(1000, 300, 1000), Prompts(164, 180, 500))


def shape_of(name: str = "Qwen/Qwen3-4B-Instruct-2507") -> Shape:
    shape = packaged_shape(name)
    assert shape is not None
    return shape


def planned(recipe: Recipe, on: str | Machine = "rtx4090", limits: Limits = NO_LIMITS, load: Load = LOAD) -> Plan:
    name = recipe.model.name
    card = machine(on) if isinstance(on, str) else on
    return estimate(recipe, Model(name, shape_of(name), "hub"), load, card, limits)


def test_the_models_of_all_shipped_recipes_are_packaged() -> None:
    assert {load_recipe(name).model.name for name in packaged_recipes()} <= set(packaged_shapes())


@pytest.mark.parametrize("name", packaged_shapes())
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    entry = packaged_shapes()[name]
    assert shape_of(name).parameters == entry["parameters"]
    assert entry["source"]


@pytest.mark.parametrize(
    ("name", "whole", "without_embedding"),
    [("Qwen/Qwen3-4B-Instruct-2507", 4.0, 3.6), ("Qwen/Qwen3-8B", 8.2, 6.95)],
)
def test_counts_are_those_of_the_model_cards(name: str, whole: float, without_embedding: float) -> None:
    shape = shape_of(name)
    assert round(shape.parameters / 1e9, 1) == whole
    rest = shape.parameters - shape.embedding_parameters - shape.head_parameters
    assert rest / 1e9 == pytest.approx(without_embedding, abs=0.06)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_shape_counts_what_transformers_makes(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_models import save_tiny

    from ssd_lite.engines.weights.model_folder import ModelFolder

    folder = ModelFolder(save_tiny(tmp_path / kind, kind, tie_word_embeddings=kind == "qwen2"))
    assert from_config(folder.config, kind).parameters == folder.parameter_count


@pytest.mark.parametrize("kind", ["mistral", "olmo2", "olmo3", "arcee", "granite", "smollm3", "seed_oss"])
def test_other_families_are_counted_too(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    made = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    assert from_config(config.to_dict(), kind).parameters == made


def test_a_mixture_of_experts_and_a_config_that_says_nothing_are_refused() -> None:
    full = dict(packaged_shapes()["Qwen/Qwen3-8B"]["config"])
    with pytest.raises(UserError, match="mixture of experts"):
        from_config({**full, "num_experts": 128}, "x")
    with pytest.raises(UserError, match="says too little"):
        from_config({"model_type": "llama"}, "x")


@pytest.mark.parametrize("name", measured_cases())
def test_formulas_are_within_15_percent_of_measured_peaks(name: str) -> None:
    case = measured_cases()[name]
    assert planned_bytes(case) == pytest.approx(case["peak_rss_bytes"], rel=0.15)


def test_most_of_the_measured_configurations_were_not_used_for_a_constant() -> None:
    cases = measured_cases().values()
    assert sum(not case.get("fit") for case in cases) >= 10
    assert {case["stage"] for case in cases} == {"train", "sample", "merge"}


def test_published_figures_are_met_within_a_quarter_where_the_work_is_the_same() -> None:
    facts = published()
    errors = []
    for row in facts["rows"]:
        wanted = planned_for(row, from_config(facts["shapes"][row["shape"]], row["shape"]))
        if row["kind"] != "card_offloaded":  # another engine's kernels, in the table only
            errors.append(abs(wanted / row["published_bytes"] - 1))
    assert len(errors) >= 10
    assert max(errors) < 0.25
    assert all(row["source"] in facts["sources"] for row in facts["rows"])


def test_constants_are_those_of_the_engines() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    from ssd_lite.engines import model_source
    from ssd_lite.engines.gguf import imatrix
    from ssd_lite.engines.gguf import model as gguf_model
    from ssd_lite.engines.gguf import read as gguf_read
    from ssd_lite.engines.gguf import types as gguf_types
    from ssd_lite.engines.sampling import llama_cpp_sampler
    from ssd_lite.engines.training import loss
    from ssd_lite.engines.weights import safetensors_file
    from ssd_lite.stages import recipe_needs

    assert loss.CHUNK_BYTES == training_memory.LOGITS_CHUNK_BYTES
    assert llama_cpp_sampler.KV_BUDGET_BYTES == sampling_memory.KV_BUDGET_BYTES
    assert {name: bits for name, (_, bits) in gguf_types.FILE_TYPES.items()} == sampling_memory.GGUF_BITS
    assert safetensors_file.BLOCK_NUMBERS == sampling_memory.BLOCK_NUMBERS
    assert imatrix.LONGEST == sampling_memory.IMATRIX_LENGTH
    assert gguf_read.FLOAT32_LIMIT == disk.FLOAT32_UP_TO
    assert set(recipe_needs._PLAIN) == set(gguf_model.PLAIN_TYPES)
    assert recipe_needs._PACKAGED_MODEL in model_source.PACKAGED


def test_bits_of_nf4_are_what_bitsandbytes_makes() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(1024, 2048)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert 8 * stored / weight.numel() == pytest.approx(training_memory.NF4_BITS, rel=1e-3)


def test_lora_counts_are_those_of_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tiny_model import save_tiny_model

    from ssd_lite.engines.training.peft_model import build_model, trainable
    from ssd_lite.engines.weights.model_folder import read_json

    folder = save_tiny_model(tmp_path / "m", "qwen3")
    shape = from_config(read_json(folder / "config.json"), "m")
    for targets in ("all-linear", ["q_proj", "down_proj"]):
        settings = Train(lora_r=4, lora_target_modules=targets)  # type: ignore[arg-type]
        network = build_model(folder, settings)
        made = sum(tensor.numel() for tensor in trainable(network).values())
        assert training_memory.trained_parameters(shape, settings) == made


@pytest.mark.parametrize("on_card", [False, True])
def test_more_work_needs_more_memory(on_card: bool) -> None:
    shape = shape_of()

    def need(tokens: int, **keys: Any) -> int:
        return sum(training_memory.training_terms(shape, Train(**keys), tokens, on_card=on_card).values())

    assert need(1024) < need(2048) < need(4096)
    assert need(2048, gradient_checkpointing=True) < need(2048, gradient_checkpointing=False)
    assert need(2048, lora_r=8) < need(2048, lora_r=64)
    assert need(2048, optim="adamw_8bit") < need(2048, optim="adamw_torch")
    assert need(2048) < need(2048, method="full")
    if on_card:  # on a CPU the mapped file stays resident beside the 4-bit copy
        assert need(2048, method="qlora") < need(2048)


@pytest.mark.parametrize(("name", "key"), list(itertools.product(packaged_recipes(), ["cpu", "rtx4090", "h100"])))
def test_terms_add_up_to_the_peak_and_ranges_are_ranges(name: str, key: str) -> None:
    recipe = load_recipe(name)
    plan = estimate(recipe, find_model(recipe)[0], load_of(recipe, None), machine(key))
    for stage in plan.stages.values():
        if stage.terms:
            # On the host converting to a GGUF may need more than the sampling that follows.
            peak = stage.gpu_peak_bytes if key != "cpu" else stage.host_peak_bytes
            assert sum(stage.terms.values()) == peak or (key == "cpu" and sum(stage.terms.values()) < peak)
            assert all(size > 0 for size in stage.terms.values())
        assert 0 < stage.seconds[0] <= stage.seconds[1]
        assert stage.tokens is None or 0 < stage.tokens[0] <= stage.tokens[1]
    lying = sum(entry.bytes for entry in plan.disk)
    assert lying <= plan.disk_peak_bytes <= lying + max(entry.passing for entry in plan.disk)


def replan(on: Machine) -> Callable[[Recipe], Plan]:
    return lambda recipe: planned(recipe, on)


def test_what_does_not_fit_comes_with_keys_that_make_it_fit() -> None:
    recipe = load_recipe("qwen3-8b-qlora-24gb", ["train.method=lora", "train.per_device_train_batch_size=4"])
    first = planned(recipe)
    assert not first.fits
    assert any(stage == "train" for stage, _ in first.reasons)
    fitting, changes = make_it_fit(first, replan(machine("rtx4090")))
    assert fitting is not None
    assert fitting.fits
    assert changes["train.per_device_train_batch_size"] == 1
    assert changes["train.gradient_accumulation_steps"] == 128  # the optimiser step keeps its samples
    assert changes["train.method"] == "qlora"


def test_nothing_is_proposed_where_nothing_helps() -> None:
    small = Machine("small", "small", 2 * 2**30, 1e13, 1e11, "made up")
    fitting, _ = make_it_fit(planned(load_recipe("qwen3-8b-qlora-24gb"), small), replan(small))
    assert fitting is None


def test_a_recipe_that_fits_is_left_as_it_is() -> None:
    first = planned(load_recipe("qwen3-4b-instruct-qlora-24gb"))
    assert first.fits
    assert make_it_fit(first, replan(machine("rtx4090"))) == (first, {})


def test_room_on_a_large_card_goes_to_larger_batches() -> None:
    first, again = planned(load_recipe("qwen3-4b-instruct-qlora-24gb"), "h200"), replan(machine("h200"))
    room = larger_batches(first, again)
    assert room["sample.batch_size"] > first.recipe.sample.batch_size
    larger = again(with_changes(first.recipe, room))
    assert larger.fits
    assert larger.seconds[1] < first.seconds[1]
    assert not again(with_changes(first.recipe, {"sample.batch_size": 2 * room["sample.batch_size"]})).fits
    assert larger_batches(planned(first.recipe), replan(machine("rtx4090"))) == {}
    assert larger_batches(planned(first.recipe, CPU), replan(CPU)) == {}


def test_host_disk_and_context_count_too() -> None:
    recipe = load_recipe("qwen3-4b-instruct-qlora-24gb")
    plan = planned(recipe, limits=Limits(ram_bytes=10 * 10**9, disk_bytes=20 * 10**9))
    assert {stage for stage, _ in plan.reasons} == {"sample", "evaluate", "disk"}
    long = load_recipe("qwen3-8b-qlora-24gb", ["sample.max_new_tokens=40960"])
    assert any("context" in why for _, why in planned(long, "h200").reasons)


def test_full_fine_tuning_of_4b_takes_what_the_optimiser_says() -> None:
    """4 bytes weights, 4 gradient, 8 moments: 16 bytes a weight before any activation."""
    recipe = load_recipe("qwen3-4b-instruct-qlora-24gb", ["train.method=full", "train.optim=adamw_torch"])
    terms = planned(recipe, "h200").stages["train"].terms
    shape = shape_of()
    assert terms["weights"] + terms["gradients"] + terms["optimiser"] == 16 * shape.parameters
    assert "adapter" not in terms


def test_the_disk_holds_three_checkpoints_for_a_moment_and_a_q8_0_while_a_matrix_is_computed() -> None:
    recipe = load_recipe("qwen3-4b-instruct-qlora-24gb", ["train.method=full", "train.optim=adamw_torch"])
    shape = shape_of()
    found = {entry.what: entry for entry in planned(recipe, "h200").disk}
    assert found["checkpoints"].bytes == 2 * 12 * shape.parameters
    assert found["checkpoints"].passing == 12 * shape.parameters
    assert found["q8_0, q4_k_m"].passing == 0
    matrix = load_recipe("qwen3-4b-instruct-qlora-24gb", ["export.types=[q4_k_m]", "export.imatrix=true"])
    assert {entry.what: entry for entry in planned(matrix).disk}["q4_k_m"].passing == int(8.5 / 8 * shape.parameters)
    asked = load_recipe("qwen3-4b-instruct-qlora-24gb", ["export.types=[q8_0, q4_k_m]", "export.imatrix=true"])
    assert {entry.what: entry for entry in planned(asked).disk}["q8_0, q4_k_m"].passing == 0
    assert "base as f16 GGUF" not in found  # transformers samples on a card
    assert "base as f16 GGUF" in {entry.what for entry in planned(recipe, CPU).disk}


def test_rounds_take_their_time_and_stay_on_the_disk() -> None:
    one = planned(load_recipe("qwen3-4b-instruct-qlora-24gb"))
    three = planned(load_recipe("qwen3-4b-instruct-qlora-24gb", ["rounds=3"]))
    assert three.stages["train"].seconds[1] == pytest.approx(3 * one.stages["train"].seconds[1])
    assert three.stages["evaluate"].seconds[1] == pytest.approx(2 * one.stages["evaluate"].seconds[1])
    assert three.gpu_peak_bytes == one.gpu_peak_bytes
    more = three.disk_peak_bytes - one.disk_peak_bytes
    assert more >= 2 * 2 * shape_of().parameters  # two more merged models at the least


def test_operations_of_a_token() -> None:
    shape, plain = shape_of(), Train(gradient_checkpointing=False)
    weights = shape.linear_parameters + shape.embedding_parameters
    assert training_flops_per_token(shape, plain, 0) == 4 * weights
    assert training_flops_per_token(shape, Train(method="full", gradient_checkpointing=False), 0) == 6 * weights
    assert training_flops_per_token(shape, Train(method="full"), 0) == 8 * weights
    assert training_flops_per_token(shape, plain, 4096) > 4 * weights


def test_steps_are_those_of_the_trainer() -> None:
    torch = pytest.importorskip("torch")
    assert torch
    import math

    from ssd_lite.engines.training.batching import BatchShape, sample_order

    for rows, epochs, batch in [(94, 1.0, 8), (10, 2.5, 4), (1, 0.1, 32)]:
        settings = Train(num_train_epochs=epochs, per_device_train_batch_size=batch, gradient_accumulation_steps=1)
        order = sample_order(rows, epochs, None, BatchShape(batch, 1).step, 0)
        assert optimiser_steps(settings, rows) == math.ceil(len(order) / batch)
    assert optimiser_steps(Train(max_steps=7), 1000) == 7


def test_a_faster_card_a_larger_batch_and_a_known_mean_shorten_and_narrow_the_range() -> None:
    shape = shape_of()
    few, many = (Decoding("hf", LOAD.train, 1, 4096, batch, "f16") for batch in (4, 16))
    known = Load(LOAD.train, LOAD.evaluate, 800)
    slow, fast = (decoding_seconds(few, shape, LOAD, machine(key)) for key in ("l4", "h100"))
    assert fast[0] < slow[0]
    assert fast[1] < slow[1]
    assert decoding_seconds(many, shape, LOAD, machine("l4"))[1] < slow[1]
    guessed = decoding_seconds(few, shape, LOAD, machine("l4"))
    narrow = decoding_seconds(few, shape, known, machine("l4"))
    assert narrow[1] / narrow[0] < guessed[1] / guessed[0]


def test_the_quickstart_took_as_long_as_planned() -> None:
    """docs/results.md, two cores: 67 s sampling, 110 and 114 s training, 244 and 325 s evaluating."""
    recipe = load_recipe("quickstart")
    plan = estimate(recipe, find_model(recipe)[0], load_of(recipe, None), CPU)
    for stage, measured in {"sample": (67, 68), "train": (110, 114), "evaluate": (244, 325)}.items():
        low, high = plan.stages[stage].seconds
        assert low < measured[0] <= measured[1] < high


def test_the_disk_of_a_whole_small_run() -> None:
    """docs/plan.md: all files of run and cache at once, added up every 30 ms; the run also drew the samples' text.

    That version still wrote a float32 GGUF between, at the end, when most lay on the disk.
    """
    recipe = load_recipe(
        "quickstart",
        ["problems.train_limit=16", "problems.evaluate_limit=4", "train.save_steps=1", "train.max_steps=4"],
    )
    plan = estimate(recipe, find_model(recipe)[0], load_of(recipe, 85), CPU)
    between = 4 * find_model(recipe)[0].shape.parameters
    assert plan.disk_peak_bytes + between == pytest.approx(2_151_879_363, rel=0.05)
    found = {entry.what: entry.bytes for entry in plan.disk}
    for what, measured in {"checkpoints": 118_083_419, "adapter": 19_598_609, "merged model": 539_615_445}.items():
        assert found[what] == pytest.approx(measured, rel=0.02)


def test_prompts_of_the_starter_set_are_as_long_as_counted() -> None:
    from tiny_models import packaged_folder

    from ssd_lite.engines.tokenizer import ChatTokenizer
    from ssd_lite.problems.named import load_problems

    tokenizer = ChatTokenizer.load(packaged_folder(), None)
    for role in ("train", "evaluate"):
        lengths = [len(tokenizer.render(p.messages)[1]) for p in load_problems("starter", role=role).problems]  # type: ignore[arg-type]
        counted = prompts_of("starter", role, None)
        assert (counted.count, counted.longest) == (len(lengths), max(lengths))
        assert counted.mean == pytest.approx(sum(lengths) / len(lengths), abs=0.6)


def test_cards_are_found_by_name_and_an_unknown_one_is_answered_with_the_nearest() -> None:
    assert machine(None) is machine("cpu") is CPU
    assert machine("RTX4090").memory_bytes == 24564 * 2**20
    assert set(cards()) >= {"rtx4090", "l4", "a10", "a100-40", "a100-80", "h100"}
    assert all(card.source for card in cards().values())
    with pytest.raises(UserError, match="did you mean 'rtx4090'"):
        machine("rtx4091")
