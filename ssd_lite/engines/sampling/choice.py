"""The choice of a sampling engine, each loaded only where it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ssd_lite.engines.sampling.sampler import Engine, Sampler, SamplerOptions
from ssd_lite.errors import UserError


def choose_engine(wanted: Literal["auto", "hf", "llama_cpp", "server"]) -> Engine:
    """auto: transformers on a CUDA card, llama.cpp without one."""
    if wanted != "auto":
        return wanted
    from ssd_lite.engines.devices import has_cuda

    return "hf" if has_cuda() else "llama_cpp"


def open_sampler(engine: Engine, model: Path, options: SamplerOptions) -> Sampler:
    """Load a model folder (hf) or a GGUF file (llama_cpp), or get a server ready that serves it.

    Raises MissingLibraryError if the library is not there.
    """
    match engine:
        case "hf":
            from ssd_lite.engines.sampling.hf_sampler import HfSampler

            return HfSampler(model, options)
        case "llama_cpp":
            from ssd_lite.engines.sampling.llama_cpp_sampler import LlamaCppSampler

            return LlamaCppSampler(model, options)
        case "server":
            from ssd_lite.engines.sampling.server_sampler import ServerSampler

            return ServerSampler(model, options)
        case _:
            raise UserError(f"unknown sampling engine {engine!r}; there are hf, llama_cpp and server.")
