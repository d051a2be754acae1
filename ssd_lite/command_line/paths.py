"""Paths as options and arguments take them: `~` expanded, and what no path can be is a usage error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path


class UserPath(click.Path):
    """click's Path, as `user_path` takes it. A shell expands no `~` in --out=~/runs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, or a usage error."""
        try:
            return user_path(str(super().convert(value, param, ctx)), "")
        except UserError as error:
            self.fail(error.message, param, ctx)


PATH = UserPath()
