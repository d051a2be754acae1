"""TRL's GRPOTrainer taught our token ids, end tokens, schedule and checkpoints; it tells nobody and writes no card."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOTrainer

from ssd_lite.engines.devices import enough_card_memory
from ssd_lite.engines.tokenizer import ChatTokenizer
from ssd_lite.engines.training.grpo_watch import GrpoWatch
from ssd_lite.engines.training.peft_model import trainable
from ssd_lite.engines.training.resumable_trainer import ResumableTrainer, Schedule
from ssd_lite.engines.training.step_watch import not_finite

# Problem ids and completions' texts, one of each for each completion; gives one reward each.
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class RewardTrainer(ResumableTrainer, GRPOTrainer):
    """The GRPOTrainer of one run. `dataset` has the columns `prompt`, rendered text, and `problem_id`."""

    def __init__(
        self,
        network: Any,
        arguments: Any,
        dataset: Any,
        *,
        schedule: Schedule,
        watch: GrpoWatch,
        folder: Path,
        reward: Reward,
    ) -> None:
        tokenizer = ChatTokenizer.load(folder)
        self.schedule = schedule
        start = {name: tensor.detach().clone() for name, tensor in trainable(network).items()}
        # Nothing of the model's own generation_config.json (top-k, penalties) may bend the law.
        own = network.get_base_model() if hasattr(network, "peft_config") else network
        own.generation_config = GenerationConfig(eos_token_id=list(tokenizer.end_ids), pad_token_id=tokenizer.pad_id)
        super().__init__(
            model=network,
            reward_funcs=graded(reward, tokenizer),
            args=arguments,
            train_dataset=dataset,
            processing_class=plain_tokenizer(folder, tokenizer),
            callbacks=[watch],
        )
        # Over a 4-bit base TRL casts the adapters to bfloat16, in which small steps are lost.
        for name, tensor in start.items():
            network.get_parameter(name).data = tensor.to(network.get_parameter(name).device)
        self.remove_callback(PrinterCallback)
        watch.accelerator = self.accelerator

    def go(self, resume: Path | None) -> None:
        """Train to the end or to a wish to stop. Raises UserError where the card's memory is not enough."""
        advice = (
            "A step draws all its completions at once: lower train.grpo.max_completion_length or "
            "train.gradient_accumulation_steps, then train.per_device_train_batch_size."
        )
        with enough_card_memory("GRPO", advice), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL asks transformers under older names
            self.train(resume_from_checkpoint=str(resume) if resume else None)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Under autocast as training is: TRL unwraps the model first, and a 4-bit base holds its norms in float32."""
        with self.accelerator.autocast():
            return super()._generate_single_turn(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw and grade where a step begins, then forward and backward of one micro-batch."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise not_finite("loss", loss.item())
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card of a run is written by the stage merge."""

    def _send_telemetry(self) -> None:
        """Nothing: a run tells nobody of itself."""


def plain_tokenizer(folder: Path, tokenizer: ChatTokenizer) -> Any:
    """The folder's tokenizer for TRL, adding no token to a text: a rendered prompt holds its own, and gives our ids."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = processors.Sequence([])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=backend.id_to_token(tokenizer.end_ids[0]),
        pad_token=backend.id_to_token(tokenizer.pad_id),
        clean_up_tokenization_spaces=False,
    )


def graded(reward: Reward, tokenizer: ChatTokenizer) -> Callable[..., list[float]]:
    """`reward` as TRL calls it, with completions decoded as everywhere else. Raises ValueError for a wrong count."""

    def reward_of(completion_ids: Sequence[Sequence[int]], problem_id: Sequence[str], **_: Any) -> list[float]:
        texts = [tokenizer.decode(ids, skip_special=True) for ids in completion_ids]
        rewards = [float(value) for value in reward(problem_id, texts)]
        if len(rewards) != len(texts) or not all(map(math.isfinite, rewards)):
            raise ValueError(f"{len(rewards)} rewards for {len(texts)} completions, or one that is no number")
        return rewards

    return reward_of
