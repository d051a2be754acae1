"""Every knob of a run: its only default and its meaning. Sections stand in the order of the stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ssd_lite.recipe_export import Export
from ssd_lite.recipe_measuring import Compare, Evaluate, Report
from ssd_lite.recipe_section import NEEDS_IMATRIX, Decoding, GgufType, Positive, Rate, Section, Seed, Temperature
from ssd_lite.recipe_server import Server


class Model(Section):
    """The base model, frozen while it samples."""

    name: str = Field(min_length=1)
    """A packaged name (smollm2-135m-instruct), a local folder, a GGUF file, or a Hub id."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id; resolved to a commit and written to the run."""
    gguf_type: GgufType = "f16"
    """Type of the GGUF that llama.cpp runs where the model is a folder; the same for base and tuned."""
    enable_thinking: bool | None = None
    """Given to the chat template under this name; null leaves it to the template."""


class Problems(Section):
    """Where prompts come from."""

    train: str = "starter"
    """Set whose prompts are sampled: starter, mbpp:train, rstar-coder, or a JSONL file."""
    evaluate: str = "starter"
    """Set that is graded: starter, humaneval, mbpp:test, livecodebench:FILE[:FROM..TO], or a JSONL file with tests."""
    train_limit: Positive | None = None
    """Take only so many training prompts, drawn with sample.seed; null takes all."""
    evaluate_limit: Positive | None = None
    """Take only so many evaluation problems, drawn with evaluate.seed; null takes all."""


class Sample(Decoding):
    """How the base model answers the training prompts. Defaults: Qwen3-4B-Instruct of arXiv 2604.01193."""

    engine: Literal["auto", "hf", "llama_cpp", "server"] = "auto"
    """auto: hf on a CUDA card, llama_cpp without one; server: the one that section server starts."""
    n: Positive = 1
    """Completions a prompt; the paper takes 1."""
    temperature: Temperature = 1.6
    """T_train."""
    max_new_tokens: Positive = 8192
    """Tokens after which a completion is cut off (finish_reason "length")."""
    batch_size: Positive = 16
    """Completions that are decoded at once."""
    seed: Seed = 0
    """With the problem and the sample index it fixes every draw."""
    targets: Literal["auto", "keep", "drop"] = "auto"
    """Keep the law q of every drawn token in targets/: train.target soft needs it, the loss's terms show it. auto keeps
    it up to top_k 64; from a server, which is slower with it, only keep does."""
    teacher: str | None = None
    """Another model that answers instead of the base (distillation): packaged name, folder, GGUF or Hub id."""
    null_arm: bool = False
    """Allow T = 1 without truncation, whose expected gradient is zero: the null arm of a comparison."""

    @property
    def keeps_targets(self) -> bool:
        """Whether the laws are kept: asked for, or few enough tokens a position; never those of another model."""
        few = 0 < self.top_k <= 64 and self.engine != "server"
        wanted = self.targets == "keep" or (self.targets == "auto" and few)
        return wanted and self.teacher is None

    @model_validator(mode="after")
    def _targets_have_a_bound(self) -> Sample:
        if self.targets == "keep" and not 0 < self.top_k < 2**16:
            raise ValueError(
                "targets: keep needs top_k between 1 and 65535, or every position keeps the whole vocabulary. "
                "Set sample.top_k; 1000 hardly changes a law without top-k"
            )
        return self

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Sample:
        untruncated = self.top_k == 0 and self.top_p == 1.0 and self.min_p == 0.0
        if untruncated and self.temperature == 1.0 and not self.null_arm and self.teacher is None:
            raise ValueError(
                "temperature 1 without truncation has zero expected gradient, so training would do nothing. "
                "Set sample.temperature, sample.top_k or sample.top_p, or sample.null_arm: true for the null arm"
            )
        return self


class Curate(Section):
    """Which samples are trained on. Nothing here looks at correctness, unless only_correct asks for it."""

    cut_off: Literal["drop", "keep"] = "drop"
    """What to do with completions that ran into max_new_tokens."""
    drop_stubs: bool = True
    """Drop completions of a single line, as the paper does. Empty ones are always dropped."""
    shortest_percent: Annotated[float, Field(ge=0, lt=100)] = 0.0
    """Drop this share of the shortest completions, in percent."""
    deduplicate: bool = True
    """Keep one of several equal completions of a problem."""
    only_correct: bool = False
    """Keep only samples whose program passes the tests: rejection-sampling fine-tuning (RFT), no longer SSD."""


class Grpo(Section):
    """GRPO with the grader as reward; needs the extra grpo. Rate, steps and LoRA are those of section train."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions a prompt, drawn from the model being trained."""
    temperature: Temperature = 1.0
    """Of those completions."""
    max_completion_length: Positive = 256
    """Their token cap."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL term against the base."""


class Train(Section):
    """Fine-tuning on the samples. Names are those of transformers' TrainingArguments and PEFT's LoraConfig."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """lora: 16- or 32-bit base and an adapter; qlora: base in 4-bit NF4; full: all weights, as in the paper."""
    engine: Literal["auto", "unsloth", "peft"] = "auto"
    """Library that builds the trained model; auto takes Unsloth on a CUDA card where its pinned version is installed,
    else PEFT, and says which and why."""
    target: Literal["sampled", "soft"] = "sampled"
    """sampled: cross-entropy on the drawn tokens; soft: on the law q they were drawn from, kept while sampling."""
    grpo: Grpo | None = None
    """Not SSD: learn from the grader's reward with TRL's GRPO, from problems with tests. A control of `compare`."""
    max_length: Positive = 8192
    """Longest prompt + completion in tokens; longer samples are dropped and counted."""
    num_train_epochs: Rate = 1.0
    """Passes over the samples."""
    max_steps: Positive | None = None
    """Optimiser steps; overrides num_train_epochs."""
    per_device_train_batch_size: Positive = 1
    """Samples in one forward pass."""
    gradient_accumulation_steps: Positive = 32
    """Forward passes in one optimiser step."""
    learning_rate: Rate = 1e-4
    """Peak. The paper's 5e-6 is for full fine-tuning; LoRA usually wants more (seen nearby: 1e-5 to 2e-4)."""
    min_lr_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Floor of the cosine as a share of the peak (paper: 1e-6 of 5e-6)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps with a rising learning rate (paper: 250 of 2,500)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decoupled weight decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's second moment."""
    max_grad_norm: Rate = 1.0
    """Clip the gradient's norm here."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """Optimiser; the 8-bit ones need bitsandbytes."""
    lora_r: Positive = 16
    """Rank."""
    lora_alpha: Positive = 32
    """The update is scaled by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter."""
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter; all-linear leaves out the output head, fused experts and image towers."""
    gradient_checkpointing: bool = True
    """Recompute activations instead of keeping them: less memory, about a third more time."""
    save_steps: Positive = 20
    """A checkpoint each so many optimiser steps; the last two are kept."""
    seed: Seed = 0
    """Order of the samples and the adapter's start."""
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Trackers beside metrics.jsonl, which is always written."""


class Merge(Section):
    """Base + adapter → a plain model folder."""

    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Number format of the merged weights; base keeps the base model's."""
    base: Literal["original", "dequantised"] = "original"
    """What the adapter is added to: the 16- or 32-bit base, or with train.method qlora the NF4 base it was trained on,
    dequantised (no gap to what was trained, but the error of NF4 stays in the weights)."""
    check_prompts: Annotated[int, Field(ge=0)] = 8
    """Training samples on which the merged model is compared with base + adapter as trained; 0 leaves it out."""


class Recipe(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    """Names the run folder: runs/NAME."""
    description: str = ""
    """What it is for and what was measured, for `ssd-lite recipes`."""
    threads: Positive | None = None
    """CPU threads; null measures while it works and takes what is fastest on the machine as it is then."""
    rounds: Positive = 1
    """Repeat sample to evaluate from the merged model so often. Above 1 is unpublished for raw SSD and may collapse."""
    model: Model
    problems: Problems = Problems()
    sample: Sample = Sample()
    server: Server = Server()
    curate: Curate = Curate()
    train: Train = Train()
    merge: Merge = Merge()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    report: Report = Report()
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        self.server.check_for({"sample.engine": self.sample.engine, "evaluate.engine": self.evaluate.engine})
        if self.merge.base == "dequantised" and self.train.method != "qlora":
            raise ValueError(f"merge.base dequantised needs train.method qlora, here it is {self.train.method}")
        return self

    @model_validator(mode="after")
    def _few_bits_have_their_matrix(self) -> Recipe:
        if self.model.gguf_type in NEEDS_IMATRIX:
            raise ValueError(
                f"model.gguf_type {self.model.gguf_type} needs an importance matrix, which the base's file never has"
            )
        needing = [name for name in self.evaluate.gguf if name in NEEDS_IMATRIX]
        if needing and not self.export.imatrix:
            raise ValueError(f"evaluate.gguf {needing[0]} needs an importance matrix: set export.imatrix to true")
        return self

    @model_validator(mode="after")
    def _train_fits_what_was_sampled(self) -> Recipe:
        ignored_by_grpo = {
            "train.target soft": self.train.target == "soft",
            "sample.teacher": self.sample.teacher is not None,
            "curate.only_correct": self.curate.only_correct,
            "train.engine unsloth": self.train.engine == "unsloth",
        }
        for key, asked in ignored_by_grpo.items():
            if asked and self.train.grpo is not None:
                raise ValueError(f"train.grpo draws its own completions, so {key} would have no effect. Leave it out")
        if self.train.target == "soft" and self.sample.teacher is not None:
            raise ValueError("train.target soft and sample.teacher do not go together: q is the base's own law")
        if self.train.target == "soft" and not self.sample.keeps_targets:
            raise ValueError(
                "train.target soft needs the laws of the samples. "
                "Set sample.targets: keep, with a sample.top_k (1000 hardly changes a law without top-k)"
            )
        return self
