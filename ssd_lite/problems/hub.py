"""Files of a dataset on the Hugging Face Hub, pinned to one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ssd_lite.errors import MissingLibraryError, UserError
from ssd_lite.problems.problem_set import sha256_of_digests

# Small, since columns that are not wanted lie between those that are.
READ_AHEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class HubFiles:
    """The parquet files of one folder of a dataset at `commit`; `sha256` is made of their names and digests."""

    repository: str
    commit: str
    names: tuple[str, ...]
    sha256: str

    def describe(self) -> str:
        """Where the files are, for a note: `REPOSITORY@COMMIT`."""
        return f"{self.repository}@{self.commit}"


def list_parquet(repository: str, folder: str, revision: str | None = None) -> HubFiles:
    """Resolve `revision` (None: the newest) to a commit and list the parquet files right inside `folder`."""
    hub = _library()
    try:
        info = hub.HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    except Exception as error:
        raise _unreachable(repository, error) from error
    files = {file.rfilename: _digest(file) for file in info.siblings or () if _inside(file.rfilename, folder)}
    if not files:
        what = f"has no parquet file in {folder}/."
        raise UserError(what, where=f"{repository}@{info.sha}", next_step="Give another revision or a local path.")
    return HubFiles(repository, str(info.sha), tuple(sorted(files)), sha256_of_digests(list(files.items())))


def download(files: HubFiles) -> list[Path]:
    """Local copies in the Hub cache; nothing is fetched twice."""
    hub = _library()
    try:
        return [
            Path(hub.hf_hub_download(files.repository, name, repo_type="dataset", revision=files.commit))
            for name in files.names
        ]
    except Exception as error:
        raise _unreachable(files.repository, error) from error


def open_remote(files: HubFiles, name: str) -> BinaryIO:
    """A seekable file on the Hub that fetches only the byte ranges that are read."""
    hub = _library()
    try:
        place = f"datasets/{files.repository}@{files.commit}/{name}"
        file = hub.HfFileSystem().open(place, "rb", block_size=READ_AHEAD_BYTES)
    except Exception as error:
        raise _unreachable(files.repository, error) from error
    return cast(BinaryIO, file)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingLibraryError("huggingface-hub", needed_for="A data set of the Hub", extra="data") from error
    return huggingface_hub


def _inside(name: str, folder: str) -> bool:
    path = Path(name)
    return path.suffix == ".parquet" and path.parent == Path(folder)


def _digest(file: Any) -> str:
    return str(file.lfs.sha256 if file.lfs else file.blob_id)


def _unreachable(repository: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    advice = "Check the network and the name, or download the files elsewhere and give their local path."
    return UserError(f"cannot be read from the Hub ({reason}).", where=repository, next_step=advice)
