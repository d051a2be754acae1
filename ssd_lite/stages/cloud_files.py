"""The files for rented machines that ship with the program: what each is, its text, copies for the user to change."""

from __future__ import annotations

import difflib
from pathlib import Path

from ssd_lite.errors import UserError
from ssd_lite.recipe_file import recipe_folder


def cloud_files() -> dict[str, str]:
    """Name → text of each file in recipes/cloud."""
    found = {}
    for path in sorted((recipe_folder() / "cloud").iterdir()):
        if path.is_file():
            found[path.name] = path.read_text(encoding="utf-8")
    return found


def cloud_file(name: str) -> str:
    """The text of one file. Raises UserError where there is none of that name."""
    files = cloud_files()
    if name not in files:
        close = difflib.get_close_matches(name, files, n=1, cutoff=0.4)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"no cloud file named {name!r}{guess}.", next_step="`ssd-lite recipes cloud` lists them.")
    return files[name]


def what_it_is(text: str) -> str:
    """The first sentence of a file's head: a comment, or in Python the docstring behind the PEP 723 block."""
    lines = text.splitlines()
    docstring = next((line for line in lines if line.startswith('"""')), None)
    comment = next((line for line in lines if line.startswith("# ") and not line.startswith("# /")), "")
    return (docstring or comment).strip('#" ')


def copy_cloud_files(names: list[str], folder: Path) -> list[Path]:
    """Write files into `folder`, made if need be. Raises UserError before writing where one is there and differs."""
    texts = {folder / name: cloud_file(name) for name in names}
    try:
        for path, text in texts.items():
            if path.exists() and path.read_bytes() != text.encode():
                raise UserError(
                    "is there and differs; it is left as it is.", where=str(path), next_step="Copy to another folder."
                )
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}.", where=str(folder)) from error
    return list(texts)
