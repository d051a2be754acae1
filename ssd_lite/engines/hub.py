"""Models from the Hugging Face Hub: the files that are needed, at a commit that is written down."""

from __future__ import annotations

import re
from pathlib import Path

from ssd_lite.errors import MissingLibraryError, UserError

# Weights as safetensors only (a pickle can run code), the tokenizer, the settings, and what licences ask to pass on.
_WANTED = [
    "*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "README.md", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
]  # fmt: skip
# Copies of the weights in other layouts.
_UNWANTED = ["*/*", "consolidated*"]


def download(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The local snapshot of a Hub model and its commit. Raises UserError for what the user can mend."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingLibraryError("huggingface_hub", needed_for="A model from the Hub", extra="train") from error
    where = f"model.name: {name}" + (f" at {revision}" if revision else "")
    try:
        path = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except errors.GatedRepoError as error:
        raise UserError(
            "is gated.", where=where, next_step="Accept its terms on the Hub, then `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError("has no such revision.", where=where, next_step="Look at its commits on the Hub.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            "is neither a local folder nor a model on the Hub that you may read.",
            where=where,
            next_step="Check the spelling; for a private model set HF_TOKEN.",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            "is not in the local cache and the Hub cannot be reached.",
            where=where,
            next_step="Go online once, or name a local folder or a packaged model.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"the Hub answered: {error}.", where=where, next_step="Try again later.") from error
    except OSError as error:
        raise UserError(
            f"cannot be fetched: {error}.", where=where, next_step="Check the network and the disk."
        ) from error
    commit = Path(path).name
    return Path(path), commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None
