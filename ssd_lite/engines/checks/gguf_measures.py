"""Measures GGUFs against the model they were made from, which is read first and alone: laws, and replies that end."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_lite.engines.host_memory import available_bytes, card_bytes
from ssd_lite.engines.sampling.law import derived_seed
from ssd_lite.engines.sampling.sampler import CountTokens, Engine, Request, SamplerOptions
from ssd_lite.engines.scoring.divergence import Divergence, Reference
from ssd_lite.engines.scoring.scorer import Text
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.engines.weights.model_folder import ModelFolder
from ssd_lite.records import Prompt, SamplingSettings

LAW_BYTES = 256 * 2**20
"""Log-probabilities of the reference that wait in a file."""
_EXACT = ("f32", "bf16", "f16")
# Of the free memory: weights, and beside them a cache, logits and the libraries.
_SHARE = 0.7


@dataclass(frozen=True)
class ReferenceModel:
    """What GGUFs are measured against, and how: `words` for people."""

    engine: Engine
    path: Path
    words: str


def choose_reference(folder: Path | None, paths: Mapping[str, Path]) -> ReferenceModel | str:
    """The model in `folder` under transformers, where it fits into memory; else an exact GGUF among `paths`.

    Only the first also finds errors of the conversion. Where neither can be had, the reason in words. None or
    a folder without weights stands for a model that was exported without being merged.
    """
    reason = "there is no merged model" if folder is None else _why_not_hf(folder)
    if folder is not None and not reason:
        how = "bfloat16 on the card" if card_bytes() is not None else "float32"
        return ReferenceModel("hf", folder, f"the model folder under transformers ({how})")
    for gguf_type in _EXACT:
        if gguf_type in paths:
            words = f"its own {gguf_type} GGUF, which shows what quantising changed and not the conversion: {reason}"
            return ReferenceModel("llama_cpp", paths[gguf_type], words)
    return f"{reason}, and no f32, bf16 or f16 file was asked for that could stand in its place"


def _why_not_hf(folder: Path) -> str:
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return "torch or transformers is not installed"
    if not any(folder.glob("*.safetensors")):
        return "there is no merged model"
    card = card_bytes()
    needed = ModelFolder(folder).parameter_count * (4 if card is None else 2)
    free = available_bytes() if card is None else card
    if needed > _SHARE * free:
        where = "memory" if card is None else "memory on the card"
        return f"the model takes {needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB of free {where}"
    return ""


def most_positions(vocabulary_size: int, wanted: int) -> int:
    """Positions that can be read under LAW_BYTES, at most `wanted`."""
    return min(wanted, LAW_BYTES // (4 * vocabulary_size))


def measure(
    reference: ReferenceModel,
    paths: Mapping[str, Path],
    texts: Sequence[Text],
    count_tokens: CountTokens,
    threads: int | None = None,
) -> tuple[float, dict[str, Divergence]]:
    """Perplexity of the reference, and the divergence of each GGUF from it, by type.

    One model is loaded at a time; the laws of the reference wait in an unnamed file beside the GGUFs.
    """
    with Reference(texts, next(iter(paths.values())).parent) as laws:
        laws.read(reference.engine, reference.path, count_tokens, threads)
        found = {gguf_type: laws.compare("llama_cpp", path, count_tokens, threads) for gguf_type, path in paths.items()}
        return laws.perplexity, found


@dataclass(frozen=True)
class Reply:
    """What a GGUF answered to a prompt: `ended` by itself, or cut off at the cap of tokens."""

    prompt: str
    text: str
    ended: bool


def answer_prompts(
    path: Path,
    tokenizer: ChatTokenizer,
    prompts: Sequence[str],
    settings: SamplingSettings,
    count_tokens: CountTokens,
    threads: int | None = None,
) -> list[Reply]:
    """One reply of a GGUF to each prompt, all at once, with fixed seeds."""
    from ssd_lite.engines.sampling.llama_cpp_sampler import LlamaCppSampler

    requests = []
    for index, text in enumerate(prompts):
        rendered, ids = tokenizer.render([{"role": "user", "content": text}])
        requests.append(Request(Prompt(text, rendered, tuple(ids)), index, derived_seed(0, text, index)))
    options = SamplerOptions(len(prompts), threads, tokenizer.end_ids, tokenizer.pad_id)
    sampler = LlamaCppSampler(path, options)
    try:
        made = {done.request.index: done for done in sampler.sample(requests, settings, count_tokens)}
    finally:
        sampler.close()
    return [
        Reply(text, tokenizer.decode(made[index].ids, skip_special=True), made[index].finish_reason == "stop")
        for index, text in enumerate(prompts)
    ]
