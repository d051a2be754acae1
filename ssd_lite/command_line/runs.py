"""Commands on a run folder: run, its stages by hand, status."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd_lite.atomic import disk_errors
from ssd_lite.command_line.answers import Answer, answers_json, with_example
from ssd_lite.command_line.finite import POSITIVE
from ssd_lite.command_line.paths import PATH
from ssd_lite.command_line.process import opened_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ssd_lite.command_line.limits import Ending
    from ssd_lite.run_folder import RunFolder


@click.command(epilog=with_example("ssd-lite run quickstart", "ssd-lite run quickstart --set train.max_steps=20"))
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder; default runs/NAME below the current folder.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Override one key of the recipe; repeatable.")
@click.option("--unsafe-sandbox", is_flag=True, help="Grade programs with your rights: --set evaluate.sandbox=none.")
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1, at the end, where the tuned model fell behind the base or a GGUF never stops.",
)
@click.option("--max-hours", type=POSITIVE, metavar="H", help="Stop cleanly after so many hours of this command.")
@click.option("--max-cost", type=POSITIVE, metavar="C", help="The same in money; needs --price.")
@click.option("--price", type=POSITIVE, metavar="P", help="What an hour of this machine costs; shown as money so far.")
@click.option(
    "--then", "after", metavar="CMD", help="Shell command for the end, however it comes: done, failed, stopped."
)
@answers_json
def run(
    recipe: str,
    out: Path | None,
    settings: tuple[str, ...],
    unsafe_sandbox: bool,
    after: str | None,
    as_json: bool,
    **options: Any,
) -> Answer:
    """Do a whole run, from sampling to the report.

    The stages are sample, curate, train, merge, evaluate, export and report, one process each. Stopped or killed, the
    same command goes on where it was; a stage that is done is skipped. At a limit of hours or money, and at SIGTERM or
    Ctrl-C, it keeps what is finished (each completion, each step of training), and exits with 75.
    """
    from ssd_lite.command_line.limits import set_limits, then

    if unsafe_sandbox:
        settings = (*settings, "evaluate.sandbox=none")
    with then(after, out or Path("runs") / Path(recipe).stem) as ending, disk_errors(ending.folder):
        strict = options.pop("strict")
        set_limits(**options)
        answer = _run(recipe, out, settings, strict, as_json, ending)
        ending.code = 0 if answer.failure is None else answer.failure.exit_code
    if ending.then_code and answer.failure is None:
        return replace(answer, failure=click.ClickException(f"--then ended with exit code {ending.then_code}: {after}"))
    return answer


def _run(recipe: str, out: Path | None, settings: Sequence[str], strict: bool, as_json: bool, ending: Ending) -> Answer:
    from ssd_lite.recipe_file import load_recipe
    from ssd_lite.stages.evaluation.guard_verdict import failure
    from ssd_lite.stages.exports.endless import failure as endless_failure
    from ssd_lite.stages.pipeline import prepare, run_all

    chosen = load_recipe(recipe, settings)
    folder = prepare(out or Path("runs") / chosen.name, chosen)
    ending.folder = folder.path

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # whoever read it is gone; the run is not
            click.echo(line, err=as_json)

    summary = run_all(folder, say=say, stdout=2 if as_json else None)
    rounds, judged, which = "", summary["stages"]["evaluate"], None
    if chosen.rounds > 1:
        from ssd_lite.stages.pages.round_guard_section import exported
        from ssd_lite.stages.pages.rounds_section import rounds_table
        from ssd_lite.stages.rounds import run_rounds

        summary["rounds"] = run_rounds(folder, chosen.rounds, say=say, stdout=2 if as_json else None)
        rounds = f"\n\n{rounds_table(summary['rounds'])}"
        which = exported(summary["rounds"])
        judged = summary["rounds"]["against_base"][which]
    first = "" if summary["ran"] else f"Everything is done: {folder.path}\n\n"
    text = f"{first}{summary['table']}{rounds}\n\nReport: {folder.report}\nChat:   ssd-lite chat {folder.path}"
    failed = (failure(judged, which) or endless_failure(summary["stages"]["export"])) if strict else None
    return Answer({**summary, "table": click.unstyle(summary["table"])}, text, failed)


@click.command(epilog=with_example("ssd-lite sample runs/quickstart"))
@click.argument("folder", metavar="DIR", type=PATH)
@answers_json
def sample(folder: Path, as_json: bool) -> Answer:
    """Let the base model answer the training prompts.

    Writes DIR/samples.jsonl, each sample as it is finished.
    """
    from ssd_lite.stages.sample import sample as stage

    def text(done: dict[str, Any]) -> str:
        speed = f", {done['tokens_per_s']} tok/s" if done.get("tokens_per_s") else ""
        lines = [f"sample: {done['samples']} samples, {done['tokens']} tokens{speed}", done["problems"]["note"]]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in done["warnings"])])

    return _by_hand("sample", folder, stage, text)


@click.command(epilog=with_example("ssd-lite curate runs/quickstart --show 3"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--show", "count", type=click.IntRange(min=1), metavar="N", help="Print N rows token by token.")
@answers_json
def curate(folder: Path, count: int | None, as_json: bool) -> Answer:
    """Choose the samples to train on.

    Reads DIR/samples.jsonl, writes DIR/train.jsonl. Nothing here looks at correctness, unless
    curate.only_correct asks for samples that pass their problems' tests.
    """
    from ssd_lite.stages.curate import curate as stage
    from ssd_lite.stages.curate import show

    with opened_run(folder, "curate") as opened:
        done = stage(opened)
        shown = show(opened, count) if count else None
    dropped = ", ".join(f"{number} {reason}" for reason, number in done["dropped"].items() if number)
    text = f"curate: {done['rows']} of {done['samples']} samples, {done['trained_tokens']} tokens to train on"
    text += f"; dropped: {dropped or 'none'}"
    text = "\n".join([text, *(f"Warning: {warning}" for warning in done.get("warnings", []))])
    value = {"stage": "curate", **done, **({"shown": shown} if shown else {})}
    return Answer(value, f"{text}\n\n{shown}" if shown else text)


@click.command(epilog=with_example("ssd-lite train runs/quickstart"))
@click.argument("folder", metavar="DIR", type=PATH)
@answers_json
def train(folder: Path, as_json: bool) -> Answer:
    """Train on the chosen samples.

    Reads DIR/train.jsonl, writes DIR/adapter; goes on from the newest checkpoint of a stopped run. With train.grpo set
    it reads no samples, but learns from the tests of the training problems.
    """
    from ssd_lite.stages.train import train as stage

    def text(done: dict[str, Any]) -> str:
        kind = "reward" if "final_reward" in done else "loss"
        course = f"{kind} {done[f'first_{kind}']:.3f} to {done[f'final_{kind}']:.3f}"
        return f"train: {done['steps']} steps, {done['tokens_trained']} tokens, {done['tokens_per_s']} tok/s, {course}"

    return _by_hand("train", folder, stage, text)


@click.command(epilog=with_example("ssd-lite merge runs/quickstart"))
@click.argument("folder", metavar="DIR", type=PATH)
@answers_json
def merge(folder: Path, as_json: bool) -> Answer:
    """Merge base and adapter into DIR/merged.

    Then says how far the merged model is from base + adapter as trained.
    """
    from ssd_lite.stages.merge import merge as stage
    from ssd_lite.stages.merge_check import check_lines

    def text(done: dict[str, Any]) -> str:
        size = f"{done['bytes'] / 1e6:.0f} MB as {done['dtype']}"
        line = f"merge: {done['changed_tensors']} tensors changed, {size}, {folder / 'merged'}"
        return "\n".join([line, *check_lines(done.get("check", {}))])

    return _by_hand("merge", folder, stage, text)


@click.command(epilog=with_example("ssd-lite report runs/quickstart"))
@click.argument("folder", metavar="DIR", type=PATH)
@answers_json
def report(folder: Path, as_json: bool) -> Answer:
    """Write DIR/report.html and the model card."""
    from ssd_lite.stages.report import report as stage

    return _by_hand("report", folder, stage, lambda done: f"report: {folder / 'report.html'}")


@click.command(epilog=with_example("ssd-lite status runs/quickstart"))
@click.argument("folder", metavar="DIR", type=PATH)
@answers_json
def status(folder: Path, as_json: bool) -> Answer:
    """Say how far a run is.

    Which stages are done, what is written so far, whether a process works in it. Changes nothing.
    """
    from ssd_lite.progress import duration
    from ssd_lite.run_folder import RunFolder
    from ssd_lite.stages.round_status import round_lines, status_with_rounds
    from ssd_lite.stages.status import heartbeat_lines

    seen = status_with_rounds(RunFolder.open(folder))
    lines = [f"{seen['name']} in {seen['run']}"]
    for stage, entry in seen["stages"].items():
        state = f"done {entry['finished']}, {duration(entry['seconds'])}" if entry["done"] else "-"
        lines.append(f"  {stage:9} {state}")
    counts = seen["counts"]
    lines.append(f"{counts['samples']} samples, {counts['training_rows']} training rows, {counts['steps']} steps")
    lines += [f"arm {name}: {arm['samples']} samples, {arm['grades']} graded" for name, arm in seen["arms"].items()]
    step = seen["last_step"]
    lines += [f"last step {step['step']}: {_course(step)}"] if step else []
    user = seen["in_use_by"]
    lines.append(f"in use by process {user['pid']} since {user['since']}" if user else "no process works in it")
    lines += heartbeat_lines(seen["heartbeat"], bool(user))
    lines += round_lines(seen["rounds"])
    if seen["leftovers"] and not user:
        lines.append(f"half-written by a killed process, may be deleted: {', '.join(seen['leftovers'])}")
    return Answer(seen, "\n".join(lines))


def _course(step: dict[str, Any]) -> str:
    return f"reward {step['reward']:.4f}" if "reward" in step else f"loss {step['loss']:.4f}"


def _by_hand(
    stage: str, folder: Path, work: Callable[[RunFolder], dict[str, Any]], text: Callable[[dict[str, Any]], str]
) -> Answer:
    with opened_run(folder, stage) as opened:
        done = work(opened)
    return Answer({"stage": stage, **done}, text(done))
