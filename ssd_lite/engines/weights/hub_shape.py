"""What the Hub says about a model without its weights: config.json, and the count of weights in the headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssd_lite.engines.weights.model_folder import read_json
from ssd_lite.errors import MissingLibraryError, UserError


def config_from_hub(name: str, revision: str | None) -> tuple[dict[str, Any], int | None]:
    """A Hub model's config.json and the count of its weights, None where no header could be read.

    Reads some kilobytes: the headers come by range requests. Raises UserError where the model cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingLibraryError("huggingface_hub", needed_for="A model from the Hub", extra="train") from error
    try:
        path = huggingface_hub.hf_hub_download(name, "config.json", revision=revision)
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"its config.json cannot be had ({type(error).__name__}).",
            where=f"model.name: {name}",
            next_step="Check the spelling, the network and HF_TOKEN, or name a folder that holds its config.json.",
        ) from error
    config = read_json(Path(path))
    try:
        counts = huggingface_hub.get_safetensors_metadata(name, revision=revision).parameter_count
    except (errors.HfHubHTTPError, errors.NotASafetensorsRepoError, OSError, ValueError):
        return config, None
    return config, sum(counts.values())
