"""GRPO, the control arm that learns from a reward: TRL's GRPOTrainer on our model, prompts, order and checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from ssd_lite.engines.devices import enough_card_memory
from ssd_lite.engines.threads import ThreadTuner
from ssd_lite.engines.training.batching import sample_order
from ssd_lite.engines.training.checkpoints import check_writable, newest_whole, step_of
from ssd_lite.engines.training.grpo_watch import GrpoWatch
from ssd_lite.engines.training.peft_model import BaseModel, build_model
from ssd_lite.engines.training.resumable_trainer import Schedule
from ssd_lite.engines.training.reward_trainer import Reward, RewardTrainer
from ssd_lite.engines.training.step_log import StepLog
from ssd_lite.engines.training.trackers import prepare_trackers
from ssd_lite.engines.training.trainer import (
    TrainingFiles,
    argument_values,
    check_adapter_place,
    publish,
    summarise,
    take_one_card,
)
from ssd_lite.engines.training.weight_change import WeightChange
from ssd_lite.errors import NothingToLearnError, Stopped, UserError
from ssd_lite.progress import Progress
from ssd_lite.recipe import Grpo, Train
from ssd_lite.records import Prompt


def train_grpo(
    prompts: Sequence[Prompt],
    folder: Path,
    base: BaseModel,
    files: TrainingFiles,
    settings: Train,
    reward: Reward,
    *,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train the base in `folder` by GRPO (arXiv 2402.03300) and publish `files.adapter`; returns what it counted.

    A step draws `settings.grpo.num_generations` completions of each of its prompts from the model being trained, asks
    `reward` about all of them at once, and moves the weights once. Loss and advantages are TRL's defaults: normalised
    by the step's tokens ("dapo"), rewards centred and scaled within the completions of a prompt. The summary has the
    keys of `trainer.train_model` and `completions`, `first_reward`, `final_reward` (mean of the last tenth of the
    steps), `best_reward`. Goes on from the newest whole checkpoint. Raises Stopped when a signal asked for it, after a
    checkpoint; UserError for what the user can mend, such as rewards that never differ.
    """
    grpo = settings.grpo or Grpo()
    check_adapter_place(files.adapter)
    check_writable(files.checkpoints)
    prepare_trackers(settings.report_to, files.metrics.parent)
    arguments = _arguments(files, settings, grpo)
    take_one_card(arguments, files.say)
    order, steps = _order(len(prompts), settings, arguments.generation_batch_size // grpo.num_generations)
    with enough_card_memory("the model", "Set train.method: qlora, or take a smaller model."):
        network: Any = build_model(folder, settings)
    _check_lengths(prompts, settings.max_length, network.config.get_text_config(), grpo)
    change = WeightChange(network)
    tuner = None if torch.cuda.is_available() else ThreadTuner(torch.set_num_threads, threads)
    resume = newest_whole(files.checkpoints)
    if resume is not None:
        files.say(f"train: going on from step {step_of(resume)} of {steps}")
    log = StepLog(files.metrics, files.say, writes=arguments.process_index == 0)
    with Progress(steps, "steps", "training", start=0 if resume is None else step_of(resume)) as progress:
        watch = GrpoWatch(log, progress, change, tuner, arguments.generation_batch_size)
        schedule, dataset = Schedule.of(settings, steps), _dataset(prompts, order)
        RewardTrainer(network, arguments, dataset, schedule=schedule, watch=watch, folder=folder, reward=reward).go(
            resume
        )
    if watch.stopped_at is not None:
        raise Stopped(f"Training stopped at step {watch.stopped_at} of {steps}.")
    log.close()
    moved = _check_moved(change.norm(), log.records)
    if arguments.process_index == 0:
        publish(network, files.adapter, base)
    summary = _summary(log.records, arguments.generation_batch_size)
    return {**summary, "change_norm": moved, "device": str(arguments.device)}


def _arguments(files: TrainingFiles, settings: Train, grpo: Grpo) -> Any:
    """GRPO's arguments. All completions of a step are drawn in one go from the weights the step then moves.

    Temperature is the only bend of the law: no top-k, top-p, min-p or penalty. Raises UserError where the completions
    of a step are no whole number of prompts.
    """
    values = argument_values(files, settings)
    size = settings.per_device_train_batch_size
    step = size * settings.gradient_accumulation_steps
    if step % grpo.num_generations:
        raise UserError(
            f"{grpo.num_generations} completions a prompt do not divide the {step} completions of a step "
            f"(per_device_train_batch_size {size} x gradient_accumulation_steps {step // size}).",
            where="train.grpo.num_generations",
            next_step="Set one of the three.",
        )
    values |= {
        "per_device_train_batch_size": size,
        "gradient_checkpointing": False,  # build_model has seen to it; the kwargs are for turning it on again
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "steps_per_generation": settings.gradient_accumulation_steps,
        "num_iterations": 1,
        "num_generations": grpo.num_generations,
        "max_completion_length": grpo.max_completion_length,
        "temperature": grpo.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "beta": grpo.beta,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "shuffle_dataset": False,
        "use_vllm": False,
        "log_completions": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # checkpointing has another name since transformers 5.2x
        return GRPOConfig(**values)


def _order(count: int, settings: Train, prompts_a_step: int) -> tuple[list[int], int]:
    """The prompts of all steps, one flat list, and the number of steps; the last one is filled up from a new pass."""
    if not count:
        raise UserError("there is no problem to learn from.", where="problems.train")
    order = sample_order(count, settings.num_train_epochs, settings.max_steps, prompts_a_step, settings.seed)
    steps = math.ceil(len(order) / prompts_a_step)
    return sample_order(count, settings.num_train_epochs, steps, prompts_a_step, settings.seed), steps


def _dataset(prompts: Sequence[Prompt], order: Sequence[int]) -> Any:
    columns = {"prompt": [prompt.text for prompt in prompts], "problem_id": [prompt.problem_id for prompt in prompts]}
    return Dataset.from_dict(columns).select(order)


def _check_lengths(prompts: Sequence[Prompt], max_length: int, config: Any, grpo: Grpo) -> None:
    room = min(max_length, getattr(config, "max_position_embeddings", max_length)) - grpo.max_completion_length
    long = [prompt for prompt in prompts if len(prompt.ids) > room]
    if long:
        worst = max(long, key=lambda prompt: len(prompt.ids))
        raise UserError(
            f"{len(long)} of {len(prompts)} prompts do not fit: {worst.problem_id} has {len(worst.ids)} tokens, and "
            f"train.max_length, the model's context and max_completion_length leave {max(room, 0)}.",
            where="train.grpo.max_completion_length",
            next_step="Lower it, raise train.max_length, or leave these problems out.",
        )


def _check_moved(moved: float, steps: Sequence[dict[str, Any]]) -> float:
    if all(step["equal_groups"] == 1.0 for step in steps):
        raise NothingToLearnError(
            f"in none of {len(steps)} steps did the completions of a prompt get different rewards (mean reward "
            f"{sum(step['reward'] for step in steps) / len(steps):.3f}), so there was nothing to learn.",
            where="train.grpo",
            next_step="Raise num_generations, or take problems that the base model solves now and then.",
        )
    if not moved > 0 or not math.isfinite(moved):
        raise UserError(
            f"the weights did not move in {len(steps)} steps (norm of the change {moved}).",
            where="train.learning_rate",
            next_step="Raise it, or look at the gradient norms in metrics.jsonl.",
        )
    return moved


def _summary(steps: list[dict[str, Any]], completions: int) -> dict[str, Any]:
    summary = summarise(steps)
    rewards = [step["reward"] for step in steps]
    tail = rewards[-max(1, len(rewards) // 10) :]
    summary["versions"] |= {name: version(name) for name in ("trl", "datasets")}
    return {
        **summary,
        "completions": completions * len(steps),
        "first_reward": rewards[0],
        "final_reward": sum(tail) / len(tail),
        "best_reward": max(rewards),
    }
