"""A GGUF that shall chat: the decoding that it carries, and what it is where it cannot answer."""

from __future__ import annotations

from pathlib import Path

from ssd_lite.errors import UserError
from ssd_lite.recipe_section import Decoding

_PREFIX = "general.sampling."


def file_decoding(gguf: Path, plain: Decoding) -> Decoding | None:
    """The law of general.sampling.*, which `export` writes; what a file leaves out is as in `plain`. None without one.

    Temperature 0 or less is llama.cpp's word for the likeliest token. A file's own order of samplers is not followed:
    that of a run's export is ours. Raises UserError, which says what the file is, where it is no model that can chat.
    """
    from ssd_lite.engines.gguf.quantise import Vocabulary

    try:
        view = Vocabulary(gguf)
    except UserError as error:
        raise _what_it_is(gguf, error) from error
    keys = ("temp", "top_k", "top_p", "min_p")
    found = {key: float(text) for key in keys if (text := view.value(_PREFIX + key)) is not None}
    view.close()
    if not found:
        return None
    if found.get("temp", 1) <= 0:
        found |= {"temp": 1, "top_k": 1}
    law = {("temperature" if key == "temp" else key): value for key, value in found.items()}
    if "top_k" in law:
        law["top_k"] = max(0, int(law["top_k"]))
    try:
        return Decoding.model_validate({**plain.model_dump(), **law})
    except ValueError:
        return None  # another program's numbers, outside what any law has


def _what_it_is(gguf: Path, error: UserError) -> UserError:
    """What the file is instead of a model: cut short, an adapter, or whatever its head says."""
    from ssd_lite.engines.gguf.read import open_gguf

    try:
        fields = open_gguf(gguf).fields
    except UserError as broken:
        return broken
    kind = fields.get("general.type", "model")
    if kind == "adapter":
        return UserError(
            "is a LoRA adapter, which answers only together with a GGUF of its base.",
            where=str(gguf),
            next_step=f"Chat with its run, or serve both: llama-server -m BASE.gguf --lora {gguf.name}",
        )
    if kind != "model":
        return UserError(f"is no model: its kind is {kind!r}.", where=str(gguf), next_step="Name a model's GGUF.")
    return UserError(
        error.what,
        where=str(gguf),
        next_step=f"Its architecture is {fields.get('general.architecture')}: a newer llama-cpp-python may know it. "
        "If it should, fetch or write the file again.",
    )
