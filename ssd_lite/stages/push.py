"""The command push: what a run made, onto the Hugging Face Hub, private unless asked otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.merge_check import check_lines
from ssd_lite.stages.upload.files import KINDS, Piece, pieces, refuse_what_is_not_there
from ssd_lite.stages.upload.hub import Hub, Remote, refuse_repository, size_words

NOBODY = "YOUR_NAME"
"""Stands for the user in a dry run, which asks nobody."""
_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"


@dataclass(frozen=True)
class PushOptions:
    """The options of the command, as typed."""

    what: Sequence[str]
    repo_id: str | None = None
    public: bool = False
    revision: str | None = None
    force: bool = False
    dry_run: bool = False


def push(run: RunFolder, options: PushOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Push each of `options.what` into a repository of its own, or with `dry_run` say what that would send.

    Everything is looked at before anything is sent. `pushed` has an entry each: what, repo, type, visibility, files
    with their bytes, and after a push url, commit (None: nothing had changed), sent and unchanged. Raises UserError
    for what is not done or not whole, without a token, for a repository of others, and for what the Hub refuses.
    """
    kinds = list(dict.fromkeys(options.what))
    for what in kinds:
        refuse_what_is_not_there(run, what)
    hub = None if options.dry_run else Hub()
    repos = repositories(run, kinds, options.repo_id, lambda: NOBODY if hub is None else hub.user())
    parcels = {what: pieces(run, what, repos) for what in kinds}
    result: dict[str, Any] = {"dry_run": options.dry_run, "warnings": _warnings(run, kinds), "pushed": []}
    for warning in result["warnings"]:
        say(f"Warning: {warning}")
    if hub is None:
        result["pushed"] = [_entry(what, repos[what], parcels[what], private=not options.public) for what in kinds]
        return result
    found = {what: hub.look(repos[what], KINDS[what].repo_type, options.revision) for what in kinds}
    for what, remote in found.items():
        if remote is not None and not options.force:
            refuse_repository(repos[what], remote, parcels[what], private=not options.public)
    for what in kinds:
        result["pushed"].append(_send(hub, what, repos[what], parcels[what], found[what], options, say))
        run.log(f"push: {what}, {len(result['pushed'][-1]['sent'])} files to {result['pushed'][-1]['url']}")
    return result


def repositories(run: RunFolder, kinds: Sequence[str], repo_id: str | None, user: Callable[[], str]) -> dict[str, str]:
    """The repository of each kind: a single one has the name that was asked for; several, and those without one, get
    their kind's ending after it (`-adapter`, `-gguf`, `-samples`, `-report`; the merged model gets none)."""
    if repo_id is not None and not re.fullmatch(rf"{_NAME}/{_NAME}", repo_id):
        raise UserError(
            f"{repo_id!r} is no repository's name.",
            where="--repo-id",
            next_step="Write OWNER/NAME with letters, digits, '-', '_' and '.'.",
        )
    if repo_id is not None and len(kinds) == 1:
        return {kinds[0]: repo_id}
    stem = repo_id or f"{user()}/{run.recipe.name}"
    return {what: f"{stem}{KINDS[what].suffix}" for what in kinds}


def _send(
    hub: Hub,
    what: str,
    repo: str,
    parcel: list[Piece],
    remote: Remote | None,
    options: PushOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    repo_type = KINDS[what].repo_type
    private = not options.public if remote is None else remote.private
    if remote is None:
        hub.create(repo, repo_type, private=private)
    elif private and options.public:
        say(f"{repo} is private and stays so: its settings on the Hub make it public.")
    if options.revision is not None:
        hub.branch(repo, repo_type, options.revision)
    done = hub.send(repo, repo_type, options.revision, parcel, remote or Remote(private), say)
    entry = _entry(what, repo, parcel, private=private)
    return {**entry, "url": done.url, "commit": done.commit, "sent": done.sent, "unchanged": done.unchanged}


def _entry(what: str, repo: str, parcel: Sequence[Piece], *, private: bool) -> dict[str, Any]:
    return {
        "what": what,
        "repo": repo,
        "type": KINDS[what].repo_type,
        "visibility": "private" if private else "public",
        "files": {piece.name: piece.size for piece in parcel},
        "bytes": sum(piece.size for piece in parcel),
    }


def _warnings(run: RunFolder, kinds: Sequence[str]) -> list[str]:
    found = []
    if "merged" in kinds or "gguf" in kinds:
        check = (run.done("merge") or {}).get("check", {})  # an export merges by itself where it has to
        found += [line.removeprefix("Warning: ") for line in check_lines(check) if line.startswith("Warning: ")]
    if "gguf" in kinds:
        found += run.require("export").get("checks", {}).get("warnings", [])
    if "samples" in kinds and "/" in run.recipe.problems.train:
        found.append("the prompts of your own problem file are part of the samples.")
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    said = []
    for entry in result["pushed"]:
        head = f"{entry['what']}: {entry['type']} {entry['repo']}, {entry['visibility']}"
        size = f"{len(entry['files'])} files, {size_words(entry['bytes'])}"
        if result["dry_run"]:
            said += [f"{head}: {size}", *(f"  {count:>14,}  {name}" for name, count in entry["files"].items())]
        elif entry["commit"] is None:
            said.append(f"{head}: nothing to send, {entry['url']}")
        else:
            said.append(f"{head}: {len(entry['sent'])} of {size}, {entry['url']}")
    return [*said, "Dry run: nothing was sent."] if result["dry_run"] else said
