"""A model folder as one GGUF in 16 or 32 bits: what tests compare with and hand to llama.cpp."""

from __future__ import annotations

from pathlib import Path

from ssd_lite.engines.gguf.set import write_pass
from ssd_lite.engines.weights.model_folder import ModelFolder
from ssd_lite.recipe_section import Decoding


def write_gguf(folder: Path, out: Path, gguf_type: str, *, name: str = "", decoding: Decoding | None = None) -> None:
    """Write `out` ("f32", "f16" or "bf16"; one-dimensional tensors stay float32); it appears whole or not at all.

    Raises UserError for what cannot be converted, naming llama.cpp's own converter, and for a full disk.
    """
    write_pass(ModelFolder(folder), {gguf_type: out}, name=name, decoding=decoding)
