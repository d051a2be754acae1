"""Does a merged model answer as base + adapter did? Both read the same texts, one model in memory at a time."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd_lite.engines.host_memory import available_bytes, card_bytes
from ssd_lite.engines.scoring.scorer import Text
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.engines.training.peft_model import load_base
from ssd_lite.engines.weights.model_folder import ModelFolder
from ssd_lite.errors import Stopped
from ssd_lite.interrupt import stop_requested

KEPT_BYTES = 512 * 2**20
"""Log-probabilities of the first model that are kept in host memory while the second is read."""
# Beside the weights: activations of one text, the kept log-probabilities on a CPU, and the allocator.
_ROOM = 1.25


@dataclass(frozen=True)
class Agreement:
    """The merged model against the trained one at P positions.

    `kl`: mean of KL(trained ‖ merged) over the whole vocabulary, in nats a token · `kl_worst`: the largest of them ·
    `same_first`: share of positions with the same likeliest token.
    """

    positions: int
    kl: float
    kl_worst: float
    same_first: float


def positions_each(texts: int, vocabulary: int, most: int) -> int:
    """Positions of each of `texts` completions whose laws fit KEPT_BYTES together; at least 1, at most `most`."""
    return max(1, min(most, KEPT_BYTES // (4 * vocabulary * max(1, texts))))


def lacks_memory(merged: Path) -> str | None:
    """Why the merged model, the larger of both, cannot be held in memory here; None where it can."""
    card = card_bytes()
    size = (4 if card is None else 2) * ModelFolder(merged).parameter_count
    # For a card, too, weights are read on the host and then moved.
    places = {"this machine": available_bytes(), **({} if card is None else {"the card": card})}
    for place, free in places.items():
        if size * _ROOM + KEPT_BYTES > free:
            return f"the merged model takes {size / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB free"
    return None


def agreement(
    base: Path, adapter: Path, merged: Path, method: str, texts: Sequence[Text], threads: int | None = None
) -> Agreement:
    """Compare base + adapter as `method` trained it ("lora" or "qlora") with the folder `merged`, teacher-forced.

    Both run in float32 on a CPU, and on a card in bfloat16 under autocast, as training does: a quantised base has norms
    in float32 there, which its head could not take otherwise. Raises Stopped after a signal.
    """
    before = list(_laws(_trained(base, adapter, method), texts, threads))
    _free()
    divergences, same = [], []
    for trained, law in zip(before, _laws(_plain(merged), texts, threads), strict=True):
        # A law's floor keeps 0 · (-inf) out: some models mask padding tokens with -inf.
        ratio = (trained - law).masked_fill(trained.exp() == 0, 0.0)
        divergences.append((trained.exp() * ratio).sum(dim=-1, dtype=torch.float64).clamp_min(0.0))
        same.append(trained.argmax(dim=-1) == law.argmax(dim=-1))
    _free()
    kl, first = torch.cat(divergences), torch.cat(same)
    return Agreement(len(kl), float(kl.mean()), float(kl.max()), float(first.double().mean()))


def _trained(base: Path, adapter: Path, method: str) -> nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an older name
        network: nn.Module = PeftModel.from_pretrained(load_base(base, method), adapter, autocast_adapter_dtype=True)
    return network


def _plain(folder: Path) -> nn.Module:
    network: nn.Module = load_base(folder, "lora")  # any method that neither quantises nor asks for float32 on a card
    return network


def _laws(network: Any, texts: Sequence[Text], threads: int | None) -> Iterator[Tensor]:
    """Log-probabilities [positions, vocabulary] of each text in float32 on the host; frees the network at the end."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    if next(network.parameters()).device.type != device.type:  # a 4-bit base stands there already
        network.to(device)
    network.eval()
    tuner = ThreadTuner(torch.set_num_threads, threads)
    for text in texts:
        if stop_requested():
            raise Stopped("The check of the merged model stopped.")
        started = time.monotonic()
        ids, rows = torch.tensor([text.ids], device=device), torch.as_tensor(text.rows, device=device)
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(input_ids=ids, use_cache=False, logits_to_keep=rows).logits[0]
            law = logits.float().log_softmax(dim=-1).cpu()
        tuner.step(time.monotonic() - started, len(text.ids))
        yield law


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
