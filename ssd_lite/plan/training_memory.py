"""Memory of a training step by term, as engines/training/peft_model.py, loss.py and batching.py make it."""

from __future__ import annotations

from ssd_lite.plan.shapes import Shape
from ssd_lite.recipe import Train

# engines/training/loss.py: one chunk of float32 logits; its log-softmax needs two more of the same size for a moment.
LOGITS_CHUNK_BYTES, LOGITS_COPIES = 64 * 2**20, 3
# NF4 in blocks of 64 with 8-bit scales whose own scales stand for 256 blocks: 4 + 8/64 + 32/(64*256) bits (QLoRA, arXiv
# 2305.14314, section 3: 0.127 bits for the constants).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# What the backward pass of one layer holds for a moment beside what was saved, bytes a token and number of width. Read
# from torch's own allocations on small models (docs/plan.md): 3.9 to 8.1 and 8 to 20.
PASSING_INTERMEDIATE, PASSING_HIDDEN = 8, 12
# CUDA context, cuBLAS and cuDNN workspaces: 1.4 GB on an RTX 5070 Ti, says Unsloth (studio/backend/utils/hardware/
# VRAM_ESTIMATION.md in the wheel 2026.10.7); and blocks that the allocator cannot use again, a guess.
CONTEXT_BYTES, FRAGMENTATION = 1_400_000_000, 0.05
# glibc keeps freed blocks, with and without recomputation: their share of all layers' activations. Mean of the four
# configurations marked `fit` in tests/data/plan_memory.json, which want 0.63 to 1.2 each.
CPU_ALLOCATOR = 0.94
# Interpreter, torch, transformers and peft imported (measured, Linux, CPU build of torch).
CPU_IMPORTS_BYTES = 482 * 2**20

Terms = dict[str, int]


def training_terms(shape: Shape, train: Train, tokens: int, *, on_card: bool) -> Terms:
    """Bytes by term at the moment of the step that needs most, for a micro-batch of `tokens` padded tokens.

    Three moments are compared: the loss (logits, and with full fine-tuning the head's gradient), the backward pass of a
    layer, and the optimiser. On a machine without a card the terms are those of the host.
    """
    standing = _standing(shape, train, on_card)
    kept, layer = _activations(shape, train, tokens, on_card)
    moments = [
        {"activations": kept, "logits": _logits(shape, train, tokens, on_card)},
        {"activations": kept + layer, "workspace": _passing(shape, train, tokens, on_card)},
        {"workspace": _optimiser_step(shape, train, on_card)},
    ]
    most = max(moments, key=lambda moment: sum(moment.values()))
    terms = {name: standing.get(name, 0) + most.get(name, 0) for name in {**standing, **most}}
    if on_card:
        variable = sum(most.values())
        terms["workspace"] = terms.get("workspace", 0) + CONTEXT_BYTES + int(FRAGMENTATION * variable)
    else:
        everything = shape.layers * tokens * saved_per_token(shape, train, on_card=False)
        terms["workspace"] = terms.get("workspace", 0) + CPU_IMPORTS_BYTES
        terms["allocator"] = int(CPU_ALLOCATOR * everything)
    order = ("weights", "adapter", "gradients", "optimiser", "activations", "logits", "workspace", "allocator")
    return {name: int(terms[name]) for name in order if terms.get(name)}


def trained_parameters(shape: Shape, train: Train) -> int:
    """Weights that get a gradient."""
    if train.method == "full":
        return shape.parameters
    return shape.lora_parameters(train.lora_target_modules, train.lora_r)


def optimiser_bytes(train: Train, parameters: int) -> int:
    """AdamW's two moments: 4 bytes a number each, 1 in the 8-bit ones (paged ones may leave the card; counted here)."""
    return parameters * (2 if "8bit" in train.optim else 8)


def _standing(shape: Shape, train: Train, on_card: bool) -> Terms:
    """What is there all the time."""
    parameters = trained_parameters(shape, train)
    terms = {"gradients": 4 * parameters, "optimiser": optimiser_bytes(train, parameters)}
    if train.method == "full":
        return {"weights": 4 * parameters, **terms}
    base = shape.parameters
    unquantised = shape.embedding_parameters + shape.head_parameters
    if train.method == "lora":
        weights = float(base * (2 if on_card else 4))
    elif on_card:
        weights = shape.linear_parameters * NF4_BITS / 8 + unquantised * 2 + shape.small_parameters * 4
    else:
        # The embedding is a view of the mapped file, which keeps all of it resident.
        weights = shape.linear_parameters * NF4_BITS / 8 + base * shape.weight_bytes
        weights += (4 - shape.weight_bytes) * (unquantised + shape.small_parameters)
    return {"weights": int(weights), "adapter": 4 * parameters, **terms}


def _activations(shape: Shape, train: Train, tokens: int, on_card: bool) -> tuple[int, int]:
    """What the forward pass keeps, and what the recomputation of one layer adds in the backward pass."""
    layer = tokens * saved_per_token(shape, train, on_card=on_card)
    if not train.gradient_checkpointing:
        return shape.layers * layer, 0
    return shape.layers * tokens * shape.hidden * residual_bytes(train, on_card=on_card), layer


def residual_bytes(train: Train, *, on_card: bool) -> int:
    """Bytes a number between layers: bfloat16 with a bfloat16 base; float32 norms or weights make float32 of it."""
    return 2 if on_card and train.method == "lora" else 4


def saved_per_token(shape: Shape, train: Train, *, on_card: bool) -> int:
    """Bytes that autograd keeps of one layer for one token; sources: saved-tensor hooks on the model as it is trained.

    On a card under autocast: norm inputs in float32, a bfloat16 copy of its input for every adapted module, queries,
    keys, values and attention output in bfloat16; MLP products in bfloat16, but float32 over a 4-bit base, whose
    norms are float32 and whose Linear4bit answers in its input's format.
    """
    hidden, wide, query, kv = shape.hidden, shape.intermediate, shape.query_width, shape.kv_width
    number = 2 if on_card else 4
    attention = number * (2 * query + 2 * kv) + 4 * shape.heads
    products = 3 if shape.gated else 2
    norms = (2 if train.method == "full" else 1) * 4 * ((query + kv) if shape.qk_norm else 0)
    if train.method == "full":
        inputs = 16 * hidden + (5 * hidden if on_card else 2 * hidden) * number
        return inputs + attention + norms + number * (products + 1) * wide
    adapted = shape.adapted(train.lora_target_modules)
    sources = {"q_proj": "in", "k_proj": "in", "v_proj": "in", "gate_proj": "mlp", "up_proj": "mlp"}
    sources |= {"qkv_proj": "in", "gate_up_proj": "mlp"}
    if on_card:
        inputs = sum(width for width, _ in adapted.values())
    else:  # one format: modules with the same input keep it once, the attention output is kept already
        shared = {sources.get(name, name): width for name, (width, _) in adapted.items() if name != "o_proj"}
        inputs = sum(shared.values())
    dropped = (number + 1) * sum(width for width, _ in adapted.values()) if train.lora_dropout else 0
    wide_number = 4 if train.method == "qlora" else number
    low_rank = number * train.lora_r * len(adapted)
    return 8 * hidden + number * inputs + attention + norms + wide_number * products * wide + low_rank + dropped


def _passing(shape: Shape, train: Train, tokens: int, on_card: bool) -> int:
    """Gradients on their way through one layer; over a 4-bit base also the largest weight in 16 bits."""
    size = tokens * (PASSING_INTERMEDIATE * shape.intermediate + PASSING_HIDDEN * shape.hidden)
    # A recomputed layer casts its own weights anew; without recomputing all copies live until they are used.
    size += _autocast_copies(shape, train, on_card) // (shape.layers if train.gradient_checkpointing else 1)
    if train.method == "qlora":
        size += max(width * out for width, out in shape.modules.values()) * (2 if on_card else 4)
    return size


def _autocast_copies(shape: Shape, train: Train, on_card: bool) -> int:
    """bfloat16 copies of float32 weights that autograd keeps from the forward to the backward pass."""
    if not on_card:
        return 0
    return 2 * (shape.linear_parameters if train.method == "full" else trained_parameters(shape, train))


def _logits(shape: Shape, train: Train, tokens: int, on_card: bool) -> int:
    rows = min(tokens, max(1, LOGITS_CHUNK_BYTES // (4 * shape.vocabulary)))
    size = LOGITS_COPIES * 4 * rows * shape.vocabulary + 3 * 4 * tokens * shape.hidden
    if train.method == "full":  # the head's gradient in float32, once scaled, and its weight in bfloat16
        size += shape.embedding_parameters * (4 + 4 + (2 if on_card else 0))
    return size + _autocast_copies(shape, train, on_card)


def _optimiser_step(shape: Shape, train: Train, on_card: bool) -> int:
    """adamw_torch runs over all weights at once on a card and makes one more float32 list of them on the way."""
    return 4 * trained_parameters(shape, train) if on_card and train.optim == "adamw_torch" else 0
