"""Does training through Unsloth give the loss and gradients of the PEFT path? Small models, one step each, compared.

`prove` runs every case in processes of its own (Unsloth patches classes for good): the reference is our PEFT path in
float32 on the CPU, the candidates are our PEFT path and our Unsloth path as they train. `ssd-lite doctor --engine
unsloth` runs it on a card; the tests run it on a CPU under Triton's interpreter. It says nothing of speed and memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd_lite.engines.training.proof_model import save_proof_model
from ssd_lite.recipe import Train

FAMILIES = ("llama", "qwen3")
METHODS = ("lora", "qlora")
# Found on a CPU in float16 (docs/unsloth.md): losses within 1.3e-4, gradients within 4.1e-3. A wrong alpha, padding
# on the left or a kernel that is off by a fiftieth is far outside.
FLOAT16_LOSS, FLOAT16_GRADIENT = 5e-4, 5e-3
# In bfloat16 rounding alone moves gradients by per cents; so Unsloth may be as far from float32 as PEFT is, twice.
ROUNDING = 2.0
LEAST_LOSS, LEAST_GRADIENT = 2e-3, 2e-2
_LENGTHS = ((5, 19), (9, 11), (3, 26))  # prompt and completion of each row


@dataclass(frozen=True)
class Case:
    """A model family, how it is trained, and what it is trained on; `alpha` is the adapter's."""

    family: str
    method: str
    soft: bool = False
    alpha: int = 32

    @property
    def name(self) -> str:
        """For people and files."""
        return f"{self.family}-{self.method}{'-soft' if self.soft else ''}"


@dataclass(frozen=True)
class Row:
    """What a case gave: differences to the reference, their limits, and whether they hold.

    `loss` is absolute; `gradient` is the largest of |g - g_ref| / |g_ref| over all adapter tensors.
    """

    case: str
    loss: float
    loss_limit: float
    gradient: float
    gradient_limit: float
    tensor: str

    @property
    def passed(self) -> bool:
        """Both within their limits; what is no number is not."""
        return self.loss <= self.loss_limit and self.gradient <= self.gradient_limit

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.case:16} {'ok' if self.passed else 'FAILED'}  loss off by {self.loss:.1e} (limit "
            f"{self.loss_limit:.1e}), worst gradient by {self.gradient:.1e} (limit {self.gradient_limit:.1e})"
        )


def cases() -> list[Case]:
    """Both families, 16-bit and NF4, and soft targets once each."""
    plain = [Case(family, method) for family in FAMILIES for method in METHODS]
    return [*plain, Case("llama", "lora", soft=True), Case("qwen3", "qlora", soft=True)]


def prove(
    folder: Path, launch: Sequence[str] = (sys.executable, "-m", "ssd_lite.engines.training.unsloth_proof")
) -> Iterator[Row]:
    """The rows of all cases, on a card, in an empty folder. `launch` starts a process that does `step`.

    Raises RuntimeError, with what it wrote, where a process ends badly.
    """
    for case in cases():
        model = folder / case.family
        if not model.exists():
            save_proof_model(model, case.family)
        found = {}
        for name, options in {"reference": ["peft", "--exact"], "peft": ["peft"], "unsloth": ["unsloth"]}.items():
            found[name] = folder / f"{case.name}-{name}.safetensors"
            run([*launch, *options, json.dumps(asdict(case)), str(model), str(found[name])])
        peft = differences(found["reference"], found["peft"])
        unsloth = differences(found["reference"], found["unsloth"])
        yield Row(
            case.name,
            unsloth[0],
            max(LEAST_LOSS, ROUNDING * peft[0]),
            unsloth[1],
            max(LEAST_GRADIENT, ROUNDING * peft[1]),
            unsloth[2],
        )


def run(command: Sequence[str], timeout_s: float = 900.0) -> None:
    """Run one process to its end. Raises RuntimeError with the tail of what it wrote where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}:\n{tail}")


def step(engine: str, case: Case, model: Path, out: Path, *, exact: bool = False, number_format: Any = None) -> None:
    """One forward and backward pass through an engine's own function; loss and gradients go into `out` (safetensors).

    `exact` is the reference: float32 on the CPU. `number_format` is Unsloth's, None takes bfloat16.
    """
    settings = Train.model_validate(
        {"method": case.method, "lora_r": 8, "lora_alpha": case.alpha, "max_length": 128, "seed": 3}
    )
    if engine == "unsloth":
        from ssd_lite.engines.training import unsloth_model

        unsloth_model.prepare(out.parent / "unsloth_compiled")
        options = {} if number_format is None else {"number_format": number_format}
        network = unsloth_model.build_model(model, settings, **options)
    else:
        import torch

        from ssd_lite.engines.training import peft_model

        if exact:
            torch.cuda.is_available = lambda: False
        network = peft_model.build_model(model, settings)
    _set_adapters(network)
    write_gradients(network, batch(case), out)


def batch(case: Case) -> dict[str, Any]:
    """The micro-batch of a case, from `batching.collate`: rows of three lengths, padded on the right."""
    import numpy as np

    from ssd_lite.engines.sampling.targets import TargetsBuilder
    from ssd_lite.engines.training.batching import TrainingRow, collate

    draw = np.random.default_rng(11)
    rows = []
    for prompt, completion in _LENGTHS:
        ids = draw.integers(3, 512, prompt + completion).tolist()
        targets = None
        if case.soft:
            builder = TargetsBuilder()
            for token in ids[prompt:]:
                others = draw.choice(np.setdiff1d(np.arange(3, 512), [token]), 3, replace=False)
                builder.add(np.array([token, *others]), np.array([0.55, 0.25, 0.15, 0.05]))
            targets = builder.build()
        rows.append(TrainingRow(tuple(ids[:prompt]), tuple(ids[prompt:]), targets=targets, soft=case.soft))
    return collate(rows, sum(completion for _, completion in _LENGTHS))


def _set_adapters(network: Any) -> None:
    """The same adapter in every process: B is zero at the start, and then A would have no gradient."""
    import torch

    for name, tensor in sorted(network.named_parameters()):
        if tensor.requires_grad:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)


def write_gradients(network: Any, inputs: dict[str, Any], out: Path) -> None:
    """Loss of one micro-batch through `LossModel`, and the gradient of every adapter tensor, in float32."""
    import contextlib

    import torch
    from safetensors.torch import save_file

    from ssd_lite.engines.training.loss_model import LossModel

    model = LossModel(network)
    device = next(network.parameters()).device
    wanted = {name: value for name, value in inputs.items() if name not in ("input_tokens", "teacher_probs")}
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in wanted.items()}
    autocast: Any = contextlib.nullcontext()
    if device.type == "cuda":
        autocast = torch.autocast("cuda", torch.bfloat16)  # as the Trainer does
    with autocast:
        loss = model(**moved)["loss"]
    loss.backward()
    found = {
        name: tensor.grad.float().cpu().contiguous()
        for name, tensor in network.named_parameters()
        if tensor.requires_grad
    }
    save_file({**found, "loss": loss.detach().float().cpu().reshape(1)}, out)


def differences(reference: Path, candidate: Path) -> tuple[float, float, str]:
    """|loss - reference|, the largest relative difference of a gradient, and the tensor it is of.

    Raises RuntimeError where the two do not train the same tensors.
    """
    from safetensors.torch import load_file

    one, other = load_file(reference), load_file(candidate)
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        raise RuntimeError(f"{candidate.name} trains other tensors: {sorted(one.keys() ^ other.keys())[:4]}")
    loss = abs(float(one.pop("loss")) - float(other.pop("loss")))
    worst = {name: float((other[name] - grad).norm() / grad.norm()) for name, grad in one.items()}
    tensor = max(worst, key=lambda name: math.inf if math.isnan(worst[name]) else worst[name])
    return loss, worst[tensor], tensor


def main(arguments: Sequence[str], number_format: Any = None) -> None:
    """`ENGINE [--exact] CASE MODEL OUT`: what `prove` starts; without arguments all cases on this machine's card."""
    if not arguments:
        _print_all()
        return
    engine, *rest = arguments
    exact = "--exact" in rest
    case, model, out = (part for part in rest if part != "--exact")
    step(engine, Case(**json.loads(case)), Path(model), Path(out), exact=exact, number_format=number_format)


def _print_all() -> None:
    import tempfile

    import torch

    if not torch.cuda.is_available():
        raise SystemExit("This compares on a CUDA card. Without one: the tests (docs/unsloth.md).")
    failed = False
    with tempfile.TemporaryDirectory(prefix="ssd-lite-proof-") as folder:
        for row in prove(Path(folder)):
            failed |= not row.passed
            print(row.text(), flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
