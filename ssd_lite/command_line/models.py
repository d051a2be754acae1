"""Commands on models: export and chat, for a run or for any model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.model_options import thinking_option
from ssd_lite.command_line.paths import PATH
from ssd_lite.command_line.process import let_threads_sleep, opened_run, prepare_process
from ssd_lite.errors import UserError

if TYPE_CHECKING:
    from ssd_lite.run_folder import RunFolder

AUTO = "auto"
"""Value of --imatrix without a file; stages/exports/importance.py knows it."""


@click.command(
    epilog=with_example(
        "ssd-lite export runs/quickstart",
        "ssd-lite export runs/quickstart --to q4_k_m,iq3_m --imatrix",
        "ssd-lite export base --adapter adapter --to q8_0,q4_k_m",
    )
)
@click.argument("folder", metavar="DIR|HF_FOLDER", type=PATH)
@click.option("--to", metavar="TYPES", help="GGUF types, with commas: f16,q8_0,q4_k_m.")
@click.option("--out", type=PATH, metavar="DIR", help="Where they go; default DIR/gguf, or NAME-gguf here.")
@click.option("--adapter", type=PATH, metavar="DIR", help="LoRA adapter of HF_FOLDER, merged while writing.")
@click.option(
    "--imatrix",
    is_flag=False,
    flag_value=AUTO,
    metavar="[FILE]",
    help="Importance matrix: of a run's training rows, or of FILE (.jsonl, text, or llama.cpp's matrix).",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of the quantiser.")
@click.option("--no-check", is_flag=True, help="Check the chat template alone; measure nothing.")
@click.option("--adapter-only", is_flag=True, help="Of a run: its LoRA as gguf/NAME-lora.gguf, for a base GGUF.")
@answers_json
def export(folder: Path, adapter_only: bool, as_json: bool, **options: Any) -> Answer:
    """Write GGUF files, check them, and write what serves them.

    Of a run into DIR/gguf, as section export of its recipe says or as --to does, or of any model folder with --to. A
    run without merged/, and HF_FOLDER with --adapter, are merged tensor by tensor while writing: no merged folder is
    needed. All types come from one pass; an export that was cut short goes on. Beside the files stand an Ollama
    Modelfile, an LM Studio preset and a guide with the command for llama.cpp's server.
    """
    if (folder / "recipe.yaml").is_file():
        with opened_run(folder, "export") as run:
            return _of_run(run, adapter_only, _Asked(**options))
    if adapter_only:
        raise UserError(
            "is for a run, which has an adapter.", where="--adapter-only", next_step=f"Name a run instead of {folder}."
        )
    return _of_folder(folder, _Asked(**options))


@dataclass(frozen=True)
class _Asked:
    """The options of `export`, as typed."""

    to: str | None
    out: Path | None
    adapter: Path | None
    imatrix: str | None
    threads: int | None
    no_check: bool


def _of_run(run: RunFolder, adapter_only: bool, asked: _Asked) -> Answer:
    from ssd_lite.stages import export as stage

    if asked.adapter is not None or asked.threads is not None:
        option = "--adapter" if asked.adapter is not None else "--threads"
        raise UserError("is for model folders; a run has its own.", where=option, next_step="Leave it out.")
    if adapter_only:
        unused = {"--to": asked.to, "--imatrix": asked.imatrix, "--out": asked.out, "--no-check": asked.no_check}
        for name in (name for name, value in unused.items() if value):
            raise UserError(
                "does not go with --adapter-only, which writes one file in float32.",
                where=name,
                next_step=f"Leave out {name}, or --adapter-only.",
            )
        return _adapter(run)
    if asked.to or asked.out or asked.imatrix or asked.no_check:
        types = None if asked.to is None else _types(asked.to)
        done = stage.export_more(run, types, asked.out, imatrix=asked.imatrix, check=not asked.no_check)
        return Answer({"stage": "export", **done}, _files_text(done, Path()))
    done = stage.export(run)
    return Answer({"stage": "export", **done}, _files_text(done, run.path))


def _of_folder(folder: Path, asked: _Asked) -> Answer:
    from ssd_lite.stages import export as stage

    if not folder.is_dir():
        raise UserError("is no folder.", where=str(folder.absolute()), next_step="Name a run or a model folder.")
    if asked.to is None:
        raise UserError("is missing.", where="--to", next_step="Type for instance --to f16,q8_0,q4_k_m.")
    prepare_process()
    done = stage.export_folder(
        folder,
        _types(asked.to),
        asked.out,
        adapter=asked.adapter,
        imatrix=asked.imatrix,
        threads=asked.threads,
        check=not asked.no_check,
    )
    return Answer(done, _files_text(done, Path()))


def _types(to: str) -> list[str]:
    return [name.strip().lower() for name in to.split(",") if name.strip()]


def _adapter(run: RunFolder) -> Answer:
    from ssd_lite.stages.exports.adapter import export_adapter

    done = export_adapter(run)
    rows = [f"export: {run.path / done['path']}, {done['bytes'] / 1e6:.0f} MB, for a GGUF of {done['base']}"]
    rows += [f"serve:  {command} ({program})" for program, command in done["commands"].items()]
    return Answer({"stage": "export", **done}, "\n".join(rows))


def _files_text(done: dict[str, Any], folder: Path) -> str:
    from ssd_lite.stages.pages.gguf_section import check_lines

    rows = [f"export: {folder / file['path']}, {file['bytes'] / 1e6:.0f} MB" for file in done["files"]]
    rows = rows or ["export: no file, as export.types asks for none"]
    beside = [f"export: {folder / done[key]}" for key in ("imatrix", "modelfile", "preset", "guide") if key in done]
    served = []
    if "server" in done:
        served = [f"serve:  {done['server']}", f"serve:  from {folder / Path(done['modelfile']).parent}"]
    return "\n".join([*rows, *beside, *check_lines(done.get("checks") or {}), *served])


@click.command(
    epilog=with_example(
        "ssd-lite chat runs/quickstart", 'ssd-lite chat runs/quickstart --compare --prompt "Reverse a string."'
    )
)
@click.argument("target", metavar="DIR|MODEL")
@click.option("--base", is_flag=True, help="The run's base model instead of the tuned one.")
@click.option("--compare", is_flag=True, help="Ask base and tuned with the same seed, side by side.")
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
    from ssd_lite.stages.chat import ChatOptions, chat_replies

    if as_json and prompt is None:
        raise UserError("needs --prompt.", where="--json", next_step="Add --prompt TEXT.")
    let_threads_sleep()
    replies = chat_replies(target, ChatOptions(prompt=prompt, **options))
    both = {"base_reply": replies["base"]} if options["compare"] and replies else {}
    return Answer({"reply": next(reversed(replies.values()), ""), **both})
