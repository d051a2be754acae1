"""`ssd-lite`: the group of all commands. Loads click alone; a command imports what it needs when it runs."""

from __future__ import annotations

import click

from ssd_lite import __version__
from ssd_lite.command_line import comparing, diagnosing, doctoring, evaluating, models, planning, pushing, recipes, runs
from ssd_lite.command_line.answers import failures_as_json, with_example

COMMANDS = (
    runs.run,
    doctoring.doctor,
    planning.plan,
    diagnosing.diagnose,
    runs.sample,
    runs.curate,
    runs.train,
    runs.merge,
    evaluating.evaluate,
    models.export,
    pushing.push,
    runs.report,
    runs.status,
    models.chat,
    comparing.compare,
    evaluating.grade,
    recipes.recipes,
)


_WORDS = "ssd_lite.words"


class _InOrder(click.Group):
    """Lists the commands in the order of a run; with --json every failure is an object."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Keep the words: a usage error comes before any command knows of its --json."""
        context.meta[_WORDS] = tuple(args)
        with failures_as_json(context, context.meta[_WORDS]):
            return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> object:
        """Run the command that the words name."""
        with failures_as_json(context, context.meta[_WORDS]):
            return super().invoke(context)


@click.group(cls=_InOrder, epilog=with_example("ssd-lite run quickstart"))
@click.version_option(__version__, prog_name="ssd-lite")
def main() -> None:
    """Simple Self-Distillation on one GPU, or none: sample, train, merge, evaluate, export.

    Exit codes: 0 done, 1 a bug or a drop under --strict, 2 something to mend (one line says what), 75 stopped, the same
    command goes on.
    """


for _command in COMMANDS:
    main.add_command(_command)
