"""The errors a user can mend: what is wrong, where, and what to do next."""

from __future__ import annotations

import click

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75


class UserError(click.ClickException):
    """Something the user can mend. Shown as one line without a traceback; exit code 2.

    `what` says what is wrong, `where` names the file and line, recipe key or option, and `next_step` what to do.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        self.what, self.where, self.next_step = what, where, next_step
        place = f"{where}: " if where else ""
        advice = f" {next_step}" if next_step else ""
        super().__init__(f"{place}{what}{advice}")


class MissingLibraryError(UserError):
    """A library of an optional extra is not installed; the message ends with the line to type."""

    def __init__(self, library: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed.",
            next_step=f'Type: pip install "ssd-lite[{extra}]"',
        )


class NothingToLearnError(UserError):
    """What was drawn holds nothing to train on. A comparison leaves such an arm out and goes on with the others."""


class Stopped(click.ClickException):
    """The work stopped cleanly before its end (a signal or a limit); the same command goes on. Exit code 75."""

    exit_code = EXIT_STOPPED

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} Finished work is saved; run the same command again to go on.")
