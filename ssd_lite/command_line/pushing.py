"""The command push."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.paths import PATH
from ssd_lite.command_line.process import prepare_process
from ssd_lite.errors import Stopped

KINDS = click.Choice(["adapter", "merged", "gguf", "samples", "report"])


@click.command(
    epilog=with_example(
        "ssd-lite push runs/quickstart --what merged --dry-run",
        "ssd-lite push runs/quickstart --what adapter --what gguf --repo-id me/quickstart",
    )
)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--what", type=KINDS, multiple=True, required=True, help="What to push; repeatable.")
@click.option("--repo-id", metavar="OWNER/NAME", help="Default: your name and the run's; several kinds get endings.")
@click.option("--public", is_flag=True, help="Make new repositories public; they are private without it.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, made if need be; default main.")
@click.option("--force", is_flag=True, help="Push into a public repository, or over files of others.")
@click.option("--dry-run", is_flag=True, help="List files, sizes, repository and visibility; asks nobody.")
@answers_json
def push(folder: Path, as_json: bool, **options: Any) -> Answer:
    """Push what a run made to the Hugging Face Hub.

    Private by default, each kind into a repository of its own, with a card. What is there already is not sent again.
    """
    from ssd_lite.run_folder import RunFolder
    from ssd_lite.stages.push import PushOptions, lines
    from ssd_lite.stages.push import push as stage

    run = RunFolder.open(folder)
    prepare_process()
    try:
        result = stage(run, PushOptions(**options), lambda line: click.echo(line, err=True))
    except KeyboardInterrupt as error:
        raise Stopped("The push was cut short by a second Ctrl-C.") from error
    return Answer(result, "\n".join(lines(result)))
