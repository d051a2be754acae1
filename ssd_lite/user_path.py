"""Paths as users type them: `~` expanded, and what no path can be refused before anything looks for it."""

from __future__ import annotations

import errno
from pathlib import Path

from ssd_lite.errors import UserError

# What pathlib takes for "is not there"; it raises everything else.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)


def user_path(text: str | Path, where: str) -> Path:
    """The path that `text` means, whether it is there or not. `where` names the key or option that it came by.

    Raises UserError for the home of a user who is not known, a name that no file can have, and a path that may not be
    looked at, so that `is_file` and its kin do not raise on what is returned.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"no home folder is known for {str(Path(text).parts[0])!r}.", where=where, next_step="Write the path out."
        ) from None
    try:
        path.stat()
    except ValueError as error:
        raise UserError(f"{str(text)!r} is no path ({error}).", where=where) from error
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise UserError(f"{str(path)!r} cannot be looked at: {error.strerror}.", where=where) from error
    return path
