"""The section of a recipe that exports."""

from __future__ import annotations

from pydantic import model_validator

from ssd_lite.recipe_section import NEEDS_IMATRIX, GgufType, Positive, Section


class Export(Section):
    """GGUF files of the merged model."""

    types: list[GgufType] = ["q8_0", "q4_k_m"]
    """One file each, from the merged weights; quantised by llama.cpp. [] writes none, as for a model whose architecture
    cannot be written as GGUF here."""
    imatrix: bool = False
    """Let an importance matrix of the training prompts and completions, computed by llama.cpp, guide all types below
    q8_0; those of 1 and 2 bits and iq3_xs, iq3_xxs need one."""
    imatrix_tokens: Positive = 32768
    """Tokens that the matrix is computed from, about; whole training rows are drawn."""
    check: bool = True
    """Measure perplexity, KL and best token of each file against the merged model, and whether replies end; the chat
    template is always checked."""

    @model_validator(mode="after")
    def _few_bits_need_a_matrix(self) -> Export:
        needing = [name for name in self.types if name in NEEDS_IMATRIX]
        if needing and not self.imatrix:
            raise ValueError(f"{needing[0]} needs an importance matrix: set export.imatrix to true, or leave it out")
        return self
