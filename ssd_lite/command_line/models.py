"""Commands on models and completions: evaluate, export, grade and chat, for a run or for anything else."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.process import opened_run, prepare_process
from ssd_lite.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = click.Path(path_type=Path)
SANDBOXES = click.Choice(["auto", "bubblewrap", "landlock"])
ENGINES = click.Choice(["auto", "hf", "llama_cpp"])
BLOCKS = click.Choice(["last", "first", "whole"])


def sandbox_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--sandbox and --unsafe-sandbox."""
    unsafe = click.option("--unsafe-sandbox", is_flag=True, help="Run the programs with your rights, unconfined.")
    return click.option("--sandbox", type=SANDBOXES, help="Isolation of the programs; default auto.")(unsafe(command))


@click.command(
    epilog=with_example(
        "ssd-lite evaluate runs/quickstart",
        "ssd-lite evaluate --model smollm2-135m-instruct --problems starter --n 8 \\",
        "  --temperature 0.6 --top-k 20 --top-p 0.8 --max-new-tokens 256",
    )
)
@click.argument("folder", metavar="[DIR]", required=False, type=PATH)
@click.option("--model", metavar="M", help="Packaged name, folder, GGUF file or Hub id: evaluate it without a run.")
@click.option("--revision", metavar="REV", help="Commit, tag or branch of a Hub id.")
@click.option("--problems", metavar="SET", help="Problem set with tests: starter, humaneval, FILE.jsonl ...")
@click.option("--limit", type=int, metavar="N", help="Take only so many problems, drawn with the seed.")
@click.option("--n", type=int, metavar="N", help="Completions a problem.")
@click.option("--temperature", type=float, metavar="T", help="Decoding temperature; needed with --model.")
@click.option("--top-k", type=int, metavar="K", help="Keep the K most likely tokens; 0 = off.")
@click.option("--top-p", type=float, metavar="P", help="Keep the smallest set of mass P; 1 = off.")
@click.option("--max-new-tokens", type=int, metavar="N", help="Token cap of a completion.")
@click.option("--engine", type=ENGINES, help="auto: hf on a CUDA card, llama_cpp without one.")
@click.option("--gguf-type", metavar="TYPE", help="Type of the GGUF that llama.cpp runs for a folder; default f16.")
@click.option("--batch-size", type=int, metavar="N", help="Completions that are decoded at once.")
@click.option("--threads", type=int, metavar="N", help="CPU threads; default: measured while it works.")
@click.option("--seed", type=int, metavar="N", help="Common seed of all draws.")
@click.option("--k", "ks", type=int, multiple=True, metavar="K", help="Report pass@K; repeatable.")
@click.option("--block", type=BLOCKS, help="Which fenced block is the program; default last.")
@sandbox_options
@click.option("--out", type=PATH, metavar="DIR", help="Where results go; default evaluations/MODEL-SET.")
@answers_json
def evaluate(folder: Path | None, as_json: bool, **options: Any) -> Answer:
    """Evaluate base and tuned of the run DIR, or with --model any model on any problem set.

    Programs run in a sandbox. Options that are left out take the defaults of a recipe's section evaluate.
    """
    if folder is None:
        return _evaluate_model({key: value for key, value in options.items() if value not in (None, (), False)})
    given = [name for name, value in options.items() if value not in (None, (), False)]
    if given:
        raise UserError(
            "goes with --model; a run is evaluated as its recipe.yaml says.",
            where=f"--{given[0].replace('_', '-')}",
            next_step=f"Leave it out, or leave {folder} out and name --model.",
        )
    from ssd_lite.stages.evaluate import evaluate as stage

    with opened_run(folder) as run:
        done = stage(run)
    return Answer({"stage": "evaluate", **done}, f"evaluate: {done['sentence']}")


def _evaluate_model(given: dict[str, Any]) -> Answer:
    for name in ("model", "problems", "temperature"):
        if name not in given:
            raise UserError(
                "is missing.", where=f"--{name}", next_step="Name a run folder, or --model, --problems, --temperature."
            )
    from ssd_lite.recipe_file import check_decoding
    from ssd_lite.stages.evaluate import StandAlone, evaluate_model

    law = {key: given.pop(key) for key in ("temperature", "top_k", "top_p") if key in given}
    decoding = check_decoding(law)
    return Answer({}, f"{StandAlone}{evaluate_model}{decoding}")
