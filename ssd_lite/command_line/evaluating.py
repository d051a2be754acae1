"""Commands that grade: evaluate, for a run or any model, and grade, for completions from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.model_options import OF_MODEL, in_options, model_options, results_folder, thinking_option
from ssd_lite.command_line.paths import PATH
from ssd_lite.command_line.process import locked_folder, opened_run
from ssd_lite.errors import UserError
from ssd_lite.user_path import user_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssd_lite.grading.tiers import Choice
    from ssd_lite.recipe import Recipe

SANDBOXES = click.Choice(["auto", "bubblewrap", "landlock"])
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
@click.option("--problems", metavar="SET", help="Problem set with tests: starter, humaneval, FILE.jsonl ...")
@click.option("--limit", type=int, metavar="N", help="Take only so many problems, drawn with the seed.")
@click.option("--n", type=int, metavar="N", help="Completions a problem.")
@click.option("--temperature", type=float, metavar="T", help="Decoding temperature; needed with --model.")
@model_options
@click.option("--batch-size", type=int, metavar="N", help="Completions that are decoded at once.")
@click.option("--k", "ks", type=int, multiple=True, metavar="K", help="Report pass@K; repeatable.")
@click.option("--block", type=BLOCKS, help="Which fenced block is the program; default last.")
@sandbox_options
@click.option("--out", type=PATH, metavar="DIR", help="Where results go; default evaluations/MODEL-SET.")
@thinking_option
@click.option("--strict", is_flag=True, help="Of a run: exit with 1 where the tuned model fell behind the base.")
@answers_json
def evaluate(folder: Path | None, strict: bool, as_json: bool, **options: Any) -> Answer:
    """Evaluate a run, or with --model any model.

    Programs run in a sandbox. Options that are left out take the defaults of a recipe's section evaluate.
    """
    thinking = options.pop("enable_thinking")
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    given |= {} if thinking is None else {"enable_thinking": thinking}
    if folder is None:
        if strict:
            raise UserError("goes with a run, which has two models.", where="--strict", next_step="Leave it out.")
        return _evaluate_model(given)
    if "model" in given:
        raise UserError(
            f"and the folder {folder} exclude each other: either a run is evaluated or a model.",
            where="--model",
            next_step=f"Leave out --model to evaluate the run, or {folder} to evaluate the model.",
        )
    if given:
        raise UserError(
            "goes with --model; a run is evaluated as its recipe.yaml says.",
            where="--" + ("k" if next(iter(given)) == "ks" else next(iter(given))).replace("_", "-"),
            next_step=f"Set it in {folder / 'recipe.yaml'}, section evaluate, or leave {folder} out and name --model.",
        )
    from ssd_lite.stages.evaluate import evaluate as stage

    with opened_run(folder, "evaluate") as run:
        done = stage(run)
    from ssd_lite.stages.evaluation.guard_verdict import failure
    from ssd_lite.stages.pages.guard_section import red, terminal_lines

    sentence = f"evaluate: {done['sentence']}"
    lines = [red(sentence) if done["verdict"] == "loss" else sentence, *terminal_lines(done.get("guard", []))]
    lines += [f"Warning: {warning}" for warning in done.get("warnings", [])]
    return Answer({"stage": "evaluate", **done}, "\n".join(lines), failure(done) if strict else None)


def _evaluate_model(given: dict[str, Any]) -> Answer:
    missing = next((name for name in ("model", "problems", "temperature") if name not in given), None)
    if missing:
        raise UserError(
            "is missing.", where=f"--{missing}", next_step="Name a run folder, or --model, --problems, --temperature."
        )
    from ssd_lite.stages.evaluate import evaluate_model

    recipe = _as_recipe(given)
    out = given.get("out") or results_folder("evaluations", recipe.model.name, recipe.problems.evaluate)
    with locked_folder(out):
        report = evaluate_model(recipe, out)
    return Answer({**report, "out": str(out)}, _report_text(report, out))


def _as_recipe(given: dict[str, Any]) -> Recipe:
    """The options as a recipe, so that one place checks them and one place holds their defaults."""
    from ssd_lite.recipe_file import validate
    from ssd_lite.recipe_measuring import Evaluate

    law = {key: given[key] for key in ("temperature", "top_k", "top_p", "min_p") if key in given}
    plain = ("n", "max_new_tokens", "engine", "batch_size", "seed", "block", "sandbox")
    section: dict[str, Any] = {"base": law, **{key: given[key] for key in plain if key in given}}
    if "unsafe_sandbox" in given:
        section["sandbox"] = "none"
    n = given.get("n", Evaluate().n)
    section["k"] = list(given.get("ks", ())) or [k for k in Evaluate().k if k <= max(n, 1)]
    value: dict[str, Any] = {
        "name": "evaluate",
        "threads": given.get("threads"),
        "model": {"name": given["model"], **{key: given[key] for key in OF_MODEL if key in given}},
        "problems": {"evaluate": given["problems"], "evaluate_limit": given.get("limit")},
        "evaluate": section,
    }
    try:
        return validate(value, "evaluate")
    except UserError as error:
        known = {"problems.evaluate_limit": "--limit", "problems.evaluate": "--problems", "model.name": "--model"}
        text = in_options(error.what, known, r"evaluate\.base|evaluate|model")
        raise UserError(text, where=error.where) from error


def _report_text(report: dict[str, Any], out: Path) -> str:
    rows = [
        f"pass@{k}: {100 * value['mean']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
        for k, value in report["pass_at_k"].items()
    ]
    from ssd_lite.stages.cut_off import arm_warnings

    without = f"no code {100 * report['no_code_rate']:.1f} %, no answer {100 * report['no_answer_rate']:.1f} %"
    rates = f"{without}, cut off {100 * report['cap_rate']:.1f} %"
    cap = report["settings"]["max_new_tokens"]
    warnings = arm_warnings(report["model"], report["cap_rate"], report["samples"], cap, "--max-new-tokens")
    count = f"{report['samples']} samples of {report['problems']['count']} problems"
    return "\n".join(
        [
            f"evaluate: {count}, {rates}, mean length {report['mean_tokens']:.0f} tokens",
            report["problems"]["note"],
            *rows,
            *(f"Warning: {warning}" for warning in warnings),
            f"in {out}",
        ]
    )


@click.command(epilog=with_example("ssd-lite grade answers.jsonl --problems humaneval --out grades.jsonl"))
@click.argument("samples", metavar="SAMPLES.jsonl", type=PATH)
@click.option("--problems", metavar="SET", required=True, help="Problem set with tests.")
@click.option("--block", type=BLOCKS, default="last", help="Which fenced block is the program; default last.")
@sandbox_options
@click.option("--out", type=PATH, metavar="GRADES.jsonl", help="One grade a line.")
@click.option("--evalplus", type=PATH, metavar="FILE.jsonl", help="Also write the programs as EvalPlus reads them.")
@click.option("--livecodebench", type=PATH, metavar="FILE.json", help="Also write them as LiveCodeBench reads them.")
@answers_json
def grade(samples: Path, problems: str, as_json: bool, **options: Any) -> Answer:
    """Grade completions from anywhere.

    Each line of SAMPLES.jsonl is {"problem_id", "index", "completion"}, or has a "program" instead.
    """
    from ssd_lite.grading.interchange import Interchange
    from ssd_lite.problems.named import load_problems
    from ssd_lite.stages.grade import grade_file, refuse_outputs

    interchange = Interchange(options["evalplus"], options["livecodebench"])
    if (file := user_path(problems, "--problems")).is_file():
        refuse_outputs({"--problems": file}, options["out"], interchange)
    chosen = load_problems(problems, role="evaluate")
    isolation: Choice = "none" if options["unsafe_sandbox"] else options["sandbox"] or "auto"
    done = grade_file(
        samples,
        chosen.problems,
        sandbox=isolation,
        out=options["out"],
        block=options["block"],
        interchange=interchange,
    )
    rates = [f"{key}: {100 * value:.1f} %" for key, value in done.items() if key.startswith("pass@")]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in done["verdicts"].items())
    head = f"grade: {done['samples']} samples of {done['problems']} problems: {verdicts}"
    return Answer(done, "\n".join([head, chosen.note, *rates, done["golden"], f"isolation: {done['grading']['tier']}"]))
