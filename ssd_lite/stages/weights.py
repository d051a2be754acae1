"""Which weights answer: a run's base or tuned model, or any model, as an engine loads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model

if TYPE_CHECKING:
    from ssd_lite.engines.model_source import ModelSource
    from ssd_lite.engines.sampling.sampler import Engine


@dataclass(frozen=True)
class Weights:
    """What answers: engine, folder or GGUF of the tokenizer and of the weights, the weights' hash and GGUF type."""

    engine: Engine
    folder: Path
    file: Path
    sha256: str
    gguf_type: str | None


def model_weights(source: ModelSource, engine: Engine, gguf_type: str, threads: int | None, *, gguf: bool) -> Weights:
    """Those of any model. Where a `gguf` is taken, one runs as it is, tokenizer included, a folder in `gguf_type`."""
    from ssd_lite.engines.model_source import gguf_file, hf_folder

    if gguf and source.gguf:
        return Weights(engine, source.gguf, source.gguf, source.weights_sha256, "as in the file")
    folder = hf_folder(source)
    if not gguf:
        return Weights(engine, folder, folder, source.weights_sha256, None)
    return Weights(engine, folder, gguf_file(source, gguf_type, threads=threads), source.weights_sha256, gguf_type)


def base_weights(run: RunFolder, engine: Engine) -> Weights:
    """Those of a run's base, as a GGUF always in model.gguf_type, as the tuned model's are."""
    from ssd_lite.engines.model_source import gguf_file, hf_folder

    source, gguf_type = base_model(run), run.recipe.model.gguf_type
    folder = hf_folder(source)
    if not run.recipe.server.takes_gguf(engine):
        return Weights(engine, folder, folder, source.weights_sha256, None)
    file = gguf_file(source, gguf_type, threads=run.recipe.threads)
    return Weights(engine, folder, file, source.weights_sha256, gguf_type)


def tuned_gguf_weights(run: RunFolder, gguf_type: str) -> Weights:
    """Those of a run's merged model in this GGUF type. Raises UserError before `merge` is done."""
    from ssd_lite.stages.export import tuned_gguf

    sha256 = run.require("merge")["weights_sha256"]
    return Weights("llama_cpp", run.merged, tuned_gguf(run, gguf_type), sha256, gguf_type)


def tuned_weights(run: RunFolder, engine: Engine) -> Weights:
    """Those of a run's merged model. Raises UserError before `merge` is done."""
    if not run.recipe.server.takes_gguf(engine):
        return Weights(engine, run.merged, run.merged, run.require("merge")["weights_sha256"], None)
    return replace(tuned_gguf_weights(run, run.recipe.model.gguf_type), engine=engine)
