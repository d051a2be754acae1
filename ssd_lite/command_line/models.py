"""Commands on models: export and chat, for a run or for any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.model_options import thinking_option
from ssd_lite.command_line.process import let_threads_sleep, opened_run, prepare_process
from ssd_lite.errors import UserError

PATH = click.Path(path_type=Path)


@click.command(
    epilog=with_example("ssd-lite export runs/quickstart", "ssd-lite export runs/quickstart/merged --to f16,q4_k_m")
)
@click.argument("folder", metavar="DIR|HF_FOLDER", type=PATH)
@click.option("--to", metavar="TYPES", help="GGUF types of a model folder, with commas: f16,q8_0,q4_k_m.")
@click.option("--out", type=PATH, metavar="DIR", help="Where they go; default NAME-gguf below the current folder.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of the quantiser.")
@answers_json
def export(folder: Path, to: str | None, out: Path | None, threads: int | None, as_json: bool) -> Answer:
    """Write GGUF files and an Ollama Modelfile.

    Of a run into DIR/gguf, or of any model folder with --to.
    """
    from ssd_lite.stages import export as stage

    if (folder / "recipe.yaml").is_file():
        if to or out or threads:
            raise UserError(
                "is a run: export.types of its recipe.yaml says what is written.",
                where=str(folder),
                next_step=f"For other files: ssd-lite export {folder / 'merged'} --to TYPES",
            )
        with opened_run(folder) as run:
            done = stage.export(run)
        return Answer({"stage": "export", **done}, _files_text(done, folder))
    if not folder.is_dir():
        raise UserError("is no folder.", where=str(folder.absolute()), next_step="Name a run or a model folder.")
    if to is None:
        raise UserError("is missing.", where="--to", next_step="Type for instance --to f16,q8_0,q4_k_m.")
    prepare_process()
    types = [name.strip().lower() for name in to.split(",") if name.strip()]
    done = stage.export_folder(folder, types, out or Path(f"{folder.absolute().name}-gguf"), threads=threads)
    return Answer(done, _files_text(done, Path()))


def _files_text(done: dict[str, Any], folder: Path) -> str:
    rows = [f"export: {folder / file['path']}, {file['bytes'] / 1e6:.0f} MB" for file in done["files"]]
    return "\n".join([*rows, f"export: {folder / done['modelfile']}"])


@click.command(
    epilog=with_example(
        "ssd-lite chat runs/quickstart", 'ssd-lite chat runs/quickstart --base --prompt "Reverse a string."'
    )
)
@click.argument("target", metavar="DIR|MODEL")
@click.option("--base", is_flag=True, help="The run's base model instead of the tuned one.")
@click.option("--prompt", metavar="TEXT", help="Answer this and end.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Seed of the draws; default 0.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Token cap of a reply.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
@thinking_option
@answers_json
def chat(target: str, prompt: str | None, as_json: bool, **options: Any) -> Answer:
    """Talk with the tuned model of a run, or any model.

    Ctrl-C stops a reply, Ctrl-D ends.
    """
    from ssd_lite.stages.chat import ChatOptions
    from ssd_lite.stages.chat import chat as talk

    if as_json and prompt is None:
        raise UserError("needs --prompt.", where="--json", next_step="Add --prompt TEXT.")
    let_threads_sleep()
    return Answer({"reply": talk(target, ChatOptions(prompt=prompt, **options))})
