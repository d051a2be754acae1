"""The export of a run's adapter alone: a LoRA GGUF that llama.cpp adds to a GGUF of the base model."""

from __future__ import annotations

import time
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model


def export_adapter(run: RunFolder) -> dict[str, Any]:
    """Write gguf/NAME-lora.gguf from adapter/, without merging. Raises UserError where the run trained all weights.

    The summary has `path` (inside the run), `bytes`, `weights` (adapted ones), `alpha`, `base`, `seconds`, and
    `commands`: how llama.cpp's server and Ollama put it on a base GGUF.
    """
    from ssd_lite.engines.gguf.lora import write_lora_gguf
    from ssd_lite.engines.model_source import hf_folder

    run.require("train")
    if not (run.adapter / "adapter_config.json").is_file():
        raise UserError(
            "has no adapter: the run trained all weights.",
            where=str(run.path),
            next_step=f"Export the merged model: ssd-lite export {run.path}",
        )
    started = time.monotonic()
    source = base_model(run)
    out = run.gguf / f"{run.recipe.name}-lora.gguf"
    run.gguf.mkdir(exist_ok=True)
    written = write_lora_gguf(
        run.adapter,
        hf_folder(source),
        source.weights_sha256,
        out,
        name=f"{run.recipe.name}-lora",
        base_name=source.name,
    )
    return {
        "path": str(out.relative_to(run.path)),
        "bytes": out.stat().st_size,
        "weights": written.weights,
        "alpha": written.alpha,
        "base": source.name,
        "seconds": round(time.monotonic() - started, 2),
        "commands": {
            "llama.cpp": f"llama-server -m BASE.gguf --lora {out.name}",
            "Ollama Modelfile": f"FROM ./BASE.gguf + ADAPTER ./{out.name}",
        },
    }
