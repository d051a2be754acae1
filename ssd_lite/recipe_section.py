"""What the sections of a recipe are made of: bounded numbers, the strict section, and a decoding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ssd_lite.records import SamplingSettings

Temperature = Annotated[float, Field(gt=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0",
    "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "q2_k", "q2_k_s",
    "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq2_0", "tq1_0", "q2_0", "q1_0", "mxfp4_moe",
]  # fmt: skip
NEEDS_IMATRIX = frozenset(
    ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s")
)  # fmt: skip
"""Types that llama.cpp writes with an importance matrix only."""
UNAFFECTED = ("f32", "f16", "bf16", "q8_0")
"""Types that no importance matrix changes: plain numbers, and q8_0, whose quantiser does not look at it."""


class Section(BaseModel):
    """A section of a recipe: unknown keys are refused, numbers are finite and not made from text."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Decoding(Section):
    """A sampling law: temperature, then top-k, then top-p inside the top-k, then min-p."""

    temperature: Temperature
    """Divides the logits; above 0."""
    top_k: Annotated[int, Field(ge=0)] = 20
    """Keep the k most likely tokens; 0 = off."""
    top_p: TopP = 0.8
    """Keep the smallest set of mass top_p inside the top-k; 1.0 = off."""
    min_p: MinP = 0.0
    """Keep only tokens at least so many times as likely as the likeliest; 0 = off, as in the paper."""

    def settings(self, max_new_tokens: int) -> SamplingSettings:
        """The law with a token cap, as engines and records take it."""
        return SamplingSettings(self.temperature, self.top_k, self.top_p, self.min_p, max_new_tokens)

    def samplers(self) -> str:
        """The order of llama.cpp's samplers that is this law, as `--samplers` and general.sampling.sequence take it.

        Its default chain puts the temperature last and adds penalties and others: another law.
        """
        return "top_k;temperature;top_p" + (";min_p" if self.min_p else "")

    def words(self) -> str:
        """The law for people, `temperature 0.6, top-k 20, top-p 0.8`; min-p is named only where it is on."""
        min_p = f", min-p {self.min_p:g}" if self.min_p else ""
        return f"temperature {self.temperature:g}, top-k {self.top_k or 'off'}, top-p {self.top_p:g}{min_p}"
