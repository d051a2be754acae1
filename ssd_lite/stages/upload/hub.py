"""One repository of the Hub: who holds it, what is there already, and sending what is not, so that a stop loses little.

A file that is there with the same hash is not sent. Large files go one by one before the commit that names them, and
the Hub is asked before each whether it has those bytes: a push that was killed does not send them again, as long as the
Hub keeps what no commit names yet.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ssd_lite import __version__
from ssd_lite.errors import MissingLibraryError, Stopped, UserError
from ssd_lite.interrupt import stop_requested
from ssd_lite.stages.upload.files import MARK, Piece, RepoType, git_hash

COMMIT_BYTES = 10 * 10**9
"""A commit is made each time so much has been sent: a push of a large model then keeps what it did for good."""
COMMIT_FILES = 50
_OF_THE_HUB = (".gitattributes",)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """A repository as it is: its visibility, the hash (SHA-256 of large files, else git's) and size of its files."""

    private: bool
    files: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """What a push did to one repository: its page, the last commit (None: nothing to do), names of files sent."""

    url: str
    commit: str | None
    sent: list[str]
    unchanged: list[str]


class Hub:
    """The Hub for one user. Raises UserError where there is no token, and for everything it answers but success."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ImportError as error:
            raise MissingLibraryError("huggingface-hub", needed_for="ssd-lite push", extra="data") from error
        if not sys.stderr.isatty():  # in a log its bars would be a line each second
            disable_progress_bars()
        self._library, self._errors = huggingface_hub, errors
        self._token = huggingface_hub.get_token()
        if not self._token:
            raise UserError(
                "there is no token for the Hub on this machine.",
                next_step="Type: hf auth login   (a token that may write), or set HF_TOKEN.",
            )
        self._api = huggingface_hub.HfApi(token=self._token, library_name="ssd-lite", library_version=__version__)

    def user(self) -> str:
        """The name the token belongs to."""
        with self._asking("the Hub"):
            return str(self._api.whoami()["name"])

    def look(self, repo: str, repo_type: RepoType, revision: str | None) -> Remote | None:
        """The repository, None where there is none that this user may see; without files where `revision` is new."""
        errors = self._errors
        with self._asking(repo):
            try:
                info = self._api.repo_info(repo, repo_type=repo_type)
            except errors.RepositoryNotFoundError as error:
                if getattr(error.response, "status_code", 404) == 401:
                    raise
                return None
            try:
                tree = list(self._api.list_repo_tree(repo, repo_type=repo_type, revision=revision, recursive=True))
            except (errors.RevisionNotFoundError, errors.EntryNotFoundError):
                tree = []
        files = {entry.path: _hash_of(entry) for entry in tree if hasattr(entry, "blob_id")}
        return Remote(bool(info.private), {name: found for name, found in files.items() if name not in _OF_THE_HUB})

    def create(self, repo: str, repo_type: RepoType, *, private: bool) -> None:
        """Make the repository. The visibility is sent with it, so that it is never public for a moment."""
        sdk = "static" if repo_type == "space" else None
        with self._asking(repo):
            self._api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=False, space_sdk=sdk)

    def branch(self, repo: str, repo_type: RepoType, revision: str) -> None:
        """Make a branch where there is none."""
        with self._asking(repo):
            self._api.create_branch(repo, repo_type=repo_type, branch=revision, exist_ok=True)

    def send(
        self, repo: str, repo_type: RepoType, revision: str | None, pieces: Sequence[Piece], remote: Remote, say: Say
    ) -> Sent:
        """Send what is not there. Raises Stopped between two files after a signal; what was sent stays sent."""
        wanted = [piece for piece in pieces if not _is_there(piece, remote)]
        left, commit = sum(piece.size for piece in wanted), None
        total = left
        for group in commit_groups(wanted):
            operations = []
            for piece in group:
                if stop_requested():
                    raise Stopped(f"The push to {repo} stopped.")
                say(f"{repo}: {piece.name}, {size_words(piece.size)}; {size_words(left)} of {size_words(total)} left")
                operations.append(self._operation(piece))
                with self._asking(f"{repo}: {piece.name}"):
                    self._api.preupload_lfs_files(
                        repo, operations[-1:], repo_type=repo_type, revision=revision, free_memory=False
                    )
                left -= piece.size
            with self._asking(repo):
                message = f"ssd-lite push, {len(operations)} of {len(wanted)} files"
                made = self._api.create_commit(
                    repo, operations, commit_message=message, repo_type=repo_type, revision=revision
                )
            commit = str(made.oid)
        names = [piece.name for piece in wanted]
        unchanged = [piece.name for piece in pieces if piece.name not in names]
        return Sent(self.url(repo, repo_type), commit, names, unchanged)

    def url(self, repo: str, repo_type: RepoType) -> str:
        """The repository's page."""
        return f"{self._api.endpoint}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo}"

    def _operation(self, piece: Piece) -> Any:
        return self._library.CommitOperationAdd(path_in_repo=piece.name, path_or_fileobj=piece.source)

    @contextmanager
    def _asking(self, where: str) -> Iterator[None]:
        """Turn what the client raises into one line that does not hold the token."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise self._failure(where, error) from None

    def _failure(self, where: str, error: Exception) -> UserError:
        responses = (getattr(one, "response", None) for one in (error, error.__cause__))
        status = next((response.status_code for response in responses if response is not None), None)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = " ".join(lines[:3]).replace(str(self._token), "…")
        match status:
            case 401:
                advice = "Type: hf auth login   with a token that is valid."
            case 403:
                advice = "Take a token that may write there, or name another --repo-id."
            case 409:
                advice = "Name another --repo-id."
            case _:
                advice = "Check the network; the same command goes on where it was."
        return UserError(f"the Hub refused or cannot be reached ({said}).", where=where, next_step=advice)


def refuse_repository(repo: str, remote: Remote, pieces: Sequence[Piece], *, private: bool) -> None:
    """Raise UserError for a public repository where a private one is wanted, and for one with others' files."""
    if private and not remote.private:
        raise UserError(
            "is public, and --public was not asked for.",
            where=repo,
            next_step="Add --public, name another --repo-id, or push there all the same with --force.",
        )
    mark = next(piece for piece in pieces if piece.name == MARK)
    if remote.files and not _is_there(mark, remote):
        raise UserError(
            f"holds other files ({', '.join(sorted(remote.files)[:3])}), not those of this run.",
            where=repo,
            next_step="Name another --repo-id, or push over them with --force.",
        )


def commit_groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The files of each commit, in the order given; at most COMMIT_FILES and, but for a single file, COMMIT_BYTES."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        full = not groups or len(groups[-1]) == COMMIT_FILES
        if full or sum(one.size for one in groups[-1]) + piece.size > COMMIT_BYTES:
            groups.append([])
        groups[-1].append(piece)
    return groups


def _hash_of(entry: Any) -> tuple[str, int]:
    lfs = entry.lfs
    return (str(lfs.sha256), int(lfs.size)) if lfs else (str(entry.blob_id), int(entry.size))


def _is_there(piece: Piece, remote: Remote) -> bool:
    found = remote.files.get(piece.name)
    if found is None or found[1] != piece.size:
        return False
    return found[0] == (_sha256(piece) if len(found[0]) == 64 else _git_hash(piece))


def _sha256(piece: Piece) -> str:
    from ssd_lite.engines.weights.model_cache import file_sha256

    return hashlib.sha256(piece.source).hexdigest() if isinstance(piece.source, bytes) else file_sha256(piece.source)


def _git_hash(piece: Piece) -> str:
    return git_hash(piece.source if isinstance(piece.source, bytes) else piece.source.read_bytes())


def size_words(count: int) -> str:
    """Bytes for people, in decimal units as the Hub counts them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
