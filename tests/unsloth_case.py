"""One process of the proof on a CPU: `unsloth_case.py [--control NAME] ENGINE [--exact] CASE MODEL OUT`.

Unsloth's path runs under Triton's interpreter, in float16 (the interpreter cannot count in bfloat16). A control spoils
one thing, which the comparison must then show.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import unsloth_shim


def main(arguments: list[str]) -> None:
    """Do one step of one engine; see `ssd_lite.engines.training.unsloth_proof.main`."""
    control = None
    if arguments[0] == "--control":
        _, control, *arguments = arguments
    if arguments[0] == "unsloth":
        unsloth_shim.before_import()
    import torch

    torch.set_num_threads(1)
    from ssd_lite.engines.training import unsloth_proof

    if arguments[0] == "unsloth":
        from ssd_lite.engines.training import unsloth_model

        unsloth_model.prepare(Path(arguments[-1]).parent / "unsloth_compiled")
        unsloth_shim.repair()
    if control == "kernel":
        _perturb_swiglu()
    if control == "padding":
        plain = unsloth_proof.batch
        unsloth_proof.batch = lambda case: _left_padded(plain(case))
    unsloth_proof.main(arguments, number_format=torch.float16)


def _perturb_swiglu() -> None:
    """The backward kernel of the MLP gives one of its outputs a fiftieth too large; the forward pass is as it was."""
    from unsloth.kernels import fast_lora

    kernel = fast_lora.swiglu_DWf_DW_dfg_kernel

    def spoiled(*tensors: Any) -> Any:
        hidden, up_slope, gate_slope = kernel(*tensors)
        return hidden, up_slope, gate_slope * 1.02

    fast_lora.swiglu_DWf_DW_dfg_kernel = spoiled


def _left_padded(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same rows padded on the left, with the mask and the positions that say so."""
    import torch

    ids, lengths = inputs["input_ids"], [prompt + completion for prompt, completion in ((5, 19), (9, 11), (3, 26))]
    width = ids.shape[1]
    moved, mask, positions = torch.zeros_like(ids), torch.zeros_like(ids), inputs["positions"].clone()
    for row, length in enumerate(lengths):
        moved[row, width - length :], mask[row, width - length :] = ids[row, :length], 1
        here = (positions >= row * width) & (positions < (row + 1) * width)
        positions[here] += width - length
    place = (mask.cumsum(dim=1) - 1).clamp(min=0)
    attention = {"attention_mask": mask, "position_ids": place}
    return {**inputs, "input_ids": moved, "positions": positions, "attention": attention}


if __name__ == "__main__":
    main(sys.argv[1:])
