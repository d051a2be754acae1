"""Checks what was exported: the chat template, that replies end, and how far quantising moved the laws."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lite.errors import Stopped
from ssd_lite.grading.extract import opens_thinking, without_thinking
from ssd_lite.interrupt import stop_requested
from ssd_lite.progress import Progress
from ssd_lite.recipe_section import Decoding
from ssd_lite.records import SamplingSettings
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.exports.check_texts import CheckTexts, context_length, run_texts, starter_texts

if TYPE_CHECKING:
    from ssd_lite.engines.checks.gguf_measures import Reply
    from ssd_lite.engines.scoring.divergence import Divergence
    from ssd_lite.engines.tokenizer import ChatTokenizer

SMOKE_PROMPTS = (
    "What is 2 + 3? Answer with the number alone.",
    "Name the capital of France.",
    "Say hello in one short sentence.",
    "Is ice cold? Answer yes or no.",
)
SMOKE_CAP = 256
"""Tokens; a thinking model may be cut off while it thinks, which is then not held against it."""
NO_TEXT_FITS = "no text of the check fits the model's context (max_position_embeddings)"
PLAIN_DECODING = Decoding(temperature=0.7)
"""Where no recipe says how to decode: the paper's law for an untuned instruct model."""
KL_LIMITS = {32: 0.01, 16: 0.01, 8: 0.02, 6: 0.06, 5: 0.2, 4: 0.5, 3: 1.0, 2: 2.0, 1: 4.0}
"""KL in nats a token up to which a type of so many bits is usual.

About ten times what llama.cpp measured for LLaMA 3 8B (tools/perplexity/README.md: q8_0 0.0014, q6_K 0.0055, q5_K_M
0.011, q5_0 0.022, q4_K_M 0.031, q4_0 0.072, q3_K_M 0.10, q2_K 0.45), since small models lose more; less from 4 bits
down, where ten times as much would be another model. Above it something else than rounding is at work.
"""


@dataclass(frozen=True)
class Replying:
    """How the files answer while they are checked; None: PLAIN_DECODING, its template's default, free threads."""

    decoding: Decoding | None = None
    enable_thinking: bool | None = None
    threads: int | None = None


def check_exported(
    folder: Path,
    paths: Mapping[str, Path],
    *,
    replying: Replying = Replying(),
    texts: CheckTexts | None = None,
    measure: bool = True,
    has_weights: bool = True,
) -> dict[str, Any]:
    """Check the GGUFs of `paths` (type → file), which were made from the model in `folder`.

    `folder` has the model's tokenizer files, with `has_weights` its weights too. `texts` are what the laws are read
    on, by default the starter set's golden solutions; without `measure` only the template is checked. Raises UserError
    for a template that prints otherwise than the model's own, or two bos. Everything else is a warning in the result:
    `template`, `texts`, `reference`, `files` by type, `warnings`, `seconds`. A figure that is not finite is None.
    """
    from ssd_lite.engines.checks.gguf_template import check_templates

    started = time.monotonic()
    template = check_templates(list(paths.values()), folder)
    checks: dict[str, Any] = {"template": None if template is None else vars(template), "warnings": []}
    if template is None:
        checks["warnings"].append("The model has no chat template, so nobody can chat with these files.")
    elif not template.equal:
        checks["warnings"].append("The model's chat template refuses every conversation, here and elsewhere.")
    elif template.extra_bos:
        checks["warnings"].append(
            f"llama.cpp puts {template.extra_bos} (bos) in front of every prompt, the chat template does not: "
            "completions were sampled without it. Set add_bos_token to false in tokenizer_config.json and export again."
        )
    if measure:
        checks |= _measured(folder, paths, texts, replying, has_weights)
        no_room = checks.pop("no_room")
        checks["warnings"] += [*_reference_warnings(checks["reference"]), *([no_room] if no_room else [])]
        checks["warnings"] += [warning for file in checks["files"].values() for warning in file["warnings"]]
    return {**checks, "seconds": round(time.monotonic() - started, 1)}


def check_run(
    run: RunFolder,
    paths: Mapping[str, Path],
    folder: Path | None = None,
    *,
    measure: bool = True,
    has_weights: bool = True,
) -> dict[str, Any]:
    """The checks of a run's GGUFs, on completions it was not trained on; `folder` is merged/ if it is not named."""
    recipe = run.recipe
    where = run.merged if folder is None else folder
    return check_exported(
        where,
        paths,
        replying=Replying(recipe.evaluate.tuned, recipe.model.enable_thinking, recipe.threads),
        texts=run_texts(run, where) if measure else None,
        measure=measure,
        has_weights=has_weights,
    )


def _measured(
    folder: Path,
    paths: Mapping[str, Path],
    texts: CheckTexts | None,
    replying: Replying,
    has_weights: bool,
) -> dict[str, Any]:
    from ssd_lite.engines.checks.gguf_measures import choose_reference, measure
    from ssd_lite.engines.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(folder, replying.enable_thinking, lenient=True)
    texts = texts or starter_texts(tokenizer, folder)
    reference = NO_TEXT_FITS if texts is None else choose_reference(folder if has_weights else None, paths)
    files: dict[str, Any] = {gguf_type: {"warnings": []} for gguf_type in paths}
    found: dict[str, Any] = {"texts": texts.summary() if texts else None, "files": files}
    found["no_room"] = _no_room(tokenizer, folder)
    asked = SMOKE_PROMPTS if tokenizer.chat_template is not None and not found["no_room"] else ()
    settings = (replying.decoding or PLAIN_DECODING).settings(SMOKE_CAP)
    read = 0 if texts is None or isinstance(reference, str) else texts.tokens * (1 + len(paths))
    with Progress(read + len(paths) * len(asked) * SMOKE_CAP, "tokens", "check") as progress:

        def count(tokens: int) -> None:
            progress.advance(tokens)
            if stop_requested():
                raise Stopped("The check of the exported files stopped.")

        if texts is None or isinstance(reference, str):
            found["reference"] = {"measured": False, "words": reference}
        else:
            perplexity, distances = measure(reference, paths, texts.texts, count, replying.threads)
            found["reference"] = {"measured": True, "words": reference.words, "perplexity": _finite(perplexity)}
            for gguf_type, distance in distances.items():
                files[gguf_type] |= {name: _finite(value) for name, value in vars(distance).items()}
                files[gguf_type]["warnings"] += _distance_warnings(gguf_type, distance, perplexity)
        if asked:
            for gguf_type, path in paths.items():
                replies = _replies(path, tokenizer, settings, count, replying.threads)
                files[gguf_type] |= replies
                files[gguf_type]["warnings"] += _reply_warnings(gguf_type, replies)
    return found


def _no_room(tokenizer: ChatTokenizer, folder: Path) -> str:
    """Why the short prompts are not asked: a context too short for any of them and the longest reply."""
    room = context_length(folder)
    if room is None or tokenizer.chat_template is None:
        return ""
    longest = max(len(tokenizer.render([{"role": "user", "content": text}])[1]) for text in SMOKE_PROMPTS)
    if longest + SMOKE_CAP <= room:
        return ""
    return (
        f"Whether replies end was not tried: a prompt of {longest} tokens and a reply of {SMOKE_CAP} do not fit the "
        f"context of {room} tokens (max_position_embeddings)."
    )


def _replies(path: Path, tokenizer: ChatTokenizer, settings: SamplingSettings, count: Any, threads: int | None) -> Any:
    from ssd_lite.engines.checks.gguf_measures import answer_prompts

    replies = answer_prompts(path, tokenizer, SMOKE_PROMPTS, settings, count, threads)
    opened = opens_thinking(tokenizer.render([{"role": "user", "content": "?"}])[0])
    thinking = [not reply.ended and _thinks(reply, opened) for reply in replies]
    return {
        "prompts": len(replies),
        "ended": sum(reply.ended for reply in replies),
        "still_thinking": sum(thinking),
        "cut_off": [r.prompt for r, thinks in zip(replies, thinking, strict=True) if not (r.ended or thinks)],
    }


def _thinks(reply: Reply, opened: bool) -> bool:
    """Was the reply cut off inside its thinking?"""
    return not without_thinking(reply.text, opened=opened).strip() and bool(opened or "<think" in reply.text.lower())


def bits(gguf_type: str) -> int:
    """The bits a type is named for: 4 for q4_k_m, 3 for iq3_xxs, 16 for bf16."""
    number = re.search(r"\d+", gguf_type)
    return 16 if number is None else int(number[0])


def _finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def _reference_warnings(reference: Mapping[str, Any]) -> list[str]:
    if not reference["measured"] or reference["perplexity"] is not None:
        return []
    return [
        f"The model itself, read as {reference['words']}, gives numbers that are not finite: nothing can be measured "
        "against it, and no file of it is to be trusted."
    ]


def _distance_warnings(gguf_type: str, distance: Divergence, reference: float = 1.0) -> list[str]:
    """`reference` is the perplexity of what it was compared with; where that is not finite, the KL is not its fault."""
    if not math.isfinite(distance.perplexity) or (math.isfinite(reference) and not math.isfinite(distance.kl)):
        return [f"{gguf_type}: it gives numbers that are not finite. Do not use it; take another type (export.types)."]
    if not math.isfinite(reference):
        return []
    named = bits(gguf_type)
    limit = KL_LIMITS.get(named, KL_LIMITS[4])
    if distance.kl <= limit:
        return []
    advice = (
        "The conversion itself changed the model: do not use it, convert with llama.cpp's own convert_hf_to_gguf.py."
        if named >= 16
        else "Take a type of more bits (export.types, --to)."
    )
    return [
        f"{gguf_type}: its laws lie {distance.kl:.3g} nats a token from the model's (KL), where up to {limit:g} is "
        f"usual for {named} bits. {advice}"
    ]


def _reply_warnings(gguf_type: str, replies: Mapping[str, Any]) -> list[str]:
    cut: Sequence[str] = replies["cut_off"]
    if not cut:
        return []
    none_ended = replies["ended"] == 0
    advice = (
        "It may never stop: look whether eos_token of the model's files is what its chat template ends a turn with."
        if none_ended
        else "A small model may ramble; try these prompts with `ssd-lite chat`."
    )
    return [
        f"{gguf_type}: {len(cut)} of {replies['prompts']} short prompts ran into the cap of {SMOKE_CAP} tokens, "
        f"such as {cut[0]!r}. {advice}"
    ]
