"""TensorBoard, trackio and Weights & Biases beside metrics.jsonl: are they installed, and where do they write."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from ssd_lite.errors import MissingLibraryError

# A tracker's own variable that says where it writes; one the user has set stays.
FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "wandb": "WANDB_DIR", "trackio": "TRACKIO_DIR"}


def prepare_trackers(names: Sequence[str], run_folder: Path) -> None:
    """Point each tracker into the run folder. Raises MissingLibraryError for one that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingLibraryError(name, needed_for=f"train.report_to: [{name}]", extra="trackers")
        folder = run_folder / "trackers" / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(FOLDERS[name], str(folder.absolute()))
