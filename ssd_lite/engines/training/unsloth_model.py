"""The trained model built by Unsloth: its fused kernels under our loss, loop and files; all its quirks are here.

What is ours stays ours: token ids, loss (from the hidden states of its patched body, so its fused cross-entropy, which
knows no soft targets, is not used), optimiser steps, checkpoints, the adapter's files, merging. `prepare` comes before
anything that imports transformers, and a process that called it is Unsloth's for good: it patches classes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssd_lite.errors import UserError
from ssd_lite.recipe import Train

# Read when Unsloth is imported: no request to count the users, no apt-get or git by itself.
QUIET = {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_AUTO_INSTALL": "0"}
_PATCHED_FIRST = ("transformers", "peft", "trl")


def prepare(compiled: Path) -> None:
    """Import Unsloth; what it compiles goes into `compiled`. Raises RuntimeError where transformers was there first."""
    if "unsloth" in sys.modules:
        return
    early = [name for name in _PATCHED_FIRST if name in sys.modules]
    if early:
        raise RuntimeError(f"Unsloth patches {', '.join(early)} and must be imported before")
    os.environ.update(QUIET)
    # Without it the folder appears where the command was typed, and on sys.path.
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(compiled)
    with _chatter_on_stderr():
        importlib.import_module("unsloth")


def build_model(folder: Path, settings: Train, *, number_format: torch.dtype = torch.bfloat16) -> nn.Module:
    """The model in `folder` with float32 adapters as `settings` ask, as `peft_model.build_model` gives it.

    `number_format` is that of base and kernels. Norms keep it too; PEFT's path has them in float32 over an NF4 base.
    Needs `prepare`. Raises UserError for modules the model does not have, for a rank above its hidden size, and where
    Unsloth would train another model than the one in `folder`.
    """
    from unsloth import FastLanguageModel

    from ssd_lite.engines.training.adapted_modules import check_plain
    from ssd_lite.engines.training.mergeable import check_mergeable
    from ssd_lite.engines.training.peft_model import check_adapter

    torch.manual_seed(settings.seed)
    with _chatter_on_stderr():
        base, _ = FastLanguageModel.from_pretrained(**loading(folder, settings, number_format))
        _check_same(base, folder)
        check_adapter(base, settings)
        network: nn.Module = FastLanguageModel.get_peft_model(base, **adapting(base, settings))
    check_plain(network)
    check_mergeable(network, folder)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    base.config.use_cache = False
    network.train()
    return network


def loading(folder: Path, settings: Train, number_format: torch.dtype) -> dict[str, Any]:
    """What goes to `FastLanguageModel.from_pretrained`; the tests check these names against the installed wheel.

    `use_exact_model_name`: 4-bit loading would else take a repository of Unsloth's own with another quantisation.
    `max_seq_length`: its forward pass cuts what is longer, without an error.
    """
    quantised = settings.method == "qlora"
    return {
        "model_name": str(folder),
        "max_seq_length": settings.max_length,
        "dtype": number_format,
        "load_in_4bit": quantised,
        "load_in_16bit": not quantised,
        "full_finetuning": False,
        "fix_tokenizer": False,
        "trust_remote_code": False,
        "use_gradient_checkpointing": _checkpointing(settings),
        "use_exact_model_name": True,
        "fast_inference": False,
        "random_state": settings.seed % 2**32,
        "max_lora_rank": settings.lora_r,
    }


def adapting(base: Any, settings: Train) -> dict[str, Any]:
    """What goes to `FastLanguageModel.get_peft_model`; the tests check these names against the installed wheel."""
    from ssd_lite.engines.training.adapted_modules import adapted_modules

    return {
        "r": settings.lora_r,
        # A list of short names is what its fused kernels are chosen by.
        "target_modules": adapted_modules(base, settings.lora_target_modules),
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "bias": "none",
        "use_gradient_checkpointing": _checkpointing(settings),
        "random_state": settings.seed % 2**32,
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def _checkpointing(settings: Train) -> str | bool:
    # "unsloth": activations that are recomputed wait in the host's memory.
    return "unsloth" if settings.gradient_checkpointing else False


def _check_same(base: Any, folder: Path) -> None:
    """Raise UserError where vocabulary or tying differ from the folder's: ids and merging stand on them."""
    from transformers import AutoConfig

    told = AutoConfig.from_pretrained(folder).get_text_config()
    rows = base.get_input_embeddings().weight.shape[0]
    if rows != told.vocab_size or base.config.get_text_config().tie_word_embeddings != told.tie_word_embeddings:
        raise UserError(
            f"Unsloth changed the model while loading it: {rows} token embeddings, the folder has {told.vocab_size}.",
            where="train.engine",
            next_step="Set train.engine: peft.",
        )


@contextlib.contextmanager
def _chatter_on_stderr() -> Iterator[None]:
    """Its banners go to stderr: what a stage prints on stdout is read by programs."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
