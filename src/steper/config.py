"""One typed, frozen configuration per command; the field docstrings are what ``--help`` prints.

Unknown keys are refused. Components never see a configuration: the verbs unpack it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from tyro.conf import Positional

from steper.types import TASKS, PromptLayout, Task

Rules = Literal["hotpotqa", "2wikimultihopqa", "musique"]


class Config(BaseModel):
    """Base of all configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class IndexConfig(Config):
    """Build a search index from a corpus (file or folder)."""

    source: Positional[Path]
    """Corpus: JSONL (id, title, text), Parquet, text, Markdown, or a folder of these."""
    out: Path
    """Folder for the index."""
    language: str = "en"
    """Language of stop words and stemmer."""


class RolloutConfig(Config):
    """Let a teacher answer questions step by step, searching the index."""

    index: Path
    """Index folder."""
    questions: Path
    """Questions: JSONL, Parquet, or a release file of HotpotQA, 2WikiMultiHopQA or MuSiQue."""
    out: Path
    """Run folder."""
    teacher: str = "annotated"
    """`annotated` (gold chains of the data set), `world` (the offline world's reader), or a model:
    a folder or a hub id."""
    chains: Path | None = None
    """File of reasoning chains written by people, for the annotated teacher."""
    strategy: Literal["ircot", "single-step"] = "ircot"
    """How searching and writing alternate."""
    prompt: str = "ircot"
    """Prompt wording: `ircot`, `world`, or a file of your own (see docs/formats.md)."""
    layout: PromptLayout | None = None
    """`grouped`: all passages, then all reasoning; `interleaved`: step by step, on one text that
    only grows. By default the wording's own, else `grouped`."""
    k: int = Field(default=4, ge=1)
    """Passages per search."""
    max_steps: int = Field(default=5, ge=1)
    """Most steps per question (the paper's S)."""
    split: str | None = None
    """Use only the questions of this split."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many questions."""
    error_rate: float = Field(default=0.05, ge=0.0, lt=1.0)
    """How often the `world` teacher misreads a fact."""
    seed: int = 0
    """Seed of the `world` teacher's errors."""
    max_tokens: int = Field(default=128, ge=1)
    """Most tokens of one sentence that a model writes."""
    device: str = "auto"
    """Where a model teacher runs: `auto` takes a GPU where there is one; or `cpu`, `cuda:1`, …"""


class BuildConfig(Config):
    """Filter trajectories by their answer and build the three kinds of example."""

    rollout: Path
    """Folder made by `steper rollout`."""
    out: Path
    """Run folder."""
    measure: Literal["em", "f1", "acc"] = "em"
    """Measure of the answer filter."""
    threshold: float = Field(default=1.0, gt=0.0, le=1.0)
    """Least value of the measure that passes."""
    rules: Rules = "hotpotqa"
    """Whose official scoring rules apply."""
    layout: PromptLayout | None = None
    """Lay the prompts out anew, without a new rollout; the student is then asked in this layout.
    By default the rollout's."""
    targets: Literal["cumulative", "incremental"] | None = None
    """Whether a target repeats the earlier reasoning (Eq. 3) or holds the new sentence (Eq. 2). By
    default `cumulative` in the grouped layout; the interleaved one has `incremental` only."""


class TrainConfig(Config):
    """Train a student on step-wise examples."""

    data: Path
    """Folder made by `steper build`."""
    out: Path
    """Run folder; the student goes to its `student/`."""
    base: str
    """Model to start from: a folder, a hub id, or `base-reader` (the offline world's)."""
    objective: Literal["vanilla", "uniform", "fixed", "difficulty"] = "difficulty"
    """`vanilla`: final step only; `uniform`: Eq. 3; `fixed`: --lambdas; `difficulty`: Eq. 4."""
    tasks: tuple[Task, ...] = TASKS
    """Abilities to train: any of `initialization`, `expansion`, `aggregation`."""
    lambdas: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of initialization, expansion and aggregation for `fixed`."""
    sigma_lr: float = Field(default=0.02, gt=0.0)
    """Learning rate of log σ for `difficulty`."""
    lr: float = Field(default=5e-6, gt=0.0)
    """Learning rate of the model; the paper's is 5e-6."""
    epochs: float = Field(default=2.0, gt=0.0)
    """Passes over the trajectories; fractions are allowed."""
    batch: int = Field(default=8, ge=1)
    """Trajectories per optimizer step, over all processes."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after its warm-up."""
    warmup: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the steps with a rising learning rate."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Gradients longer than this are shortened to it; 0 leaves them as they are."""
    packing: Literal["trie", "rows", "none"] = "trie"
    """`trie` runs what a trajectory's examples share once; `rows` puts examples end to end;
    `none` pads each example."""
    row_tokens: int = Field(default=8192, ge=1)
    """Most tokens of a forward pass on one process; a longer trajectory gets a pass of its own."""
    max_length: int = Field(default=4096, ge=8)
    """Most tokens of an example."""
    allow: tuple[
        Literal["truncated", "fully-masked", "empty-target", "template-mismatch"], ...
    ] = ()
    """Findings of the token audit that do not stop the run: `truncated` examples lose their ends,
    `fully-masked` and `empty-target` ones are left out, `template-mismatch` ones are used."""
    lora_rank: int = Field(default=0, ge=0)
    """Train a LoRA adapter of this rank on every linear layer instead of all weights; 0: all."""
    lora_alpha: float = Field(default=32.0, gt=0.0)
    """Scale of the adapter, divided by its rank."""
    qlora: bool = False
    """Hold the frozen base in 4 bits (NF4) under the adapter; needs CUDA and bitsandbytes."""
    bf16: bool = False
    """Train in bfloat16 mixed precision; under an adapter the frozen base is bfloat16 too."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    validation: Path | None = None
    """Folder made by `steper build` whose loss is measured; the best model is then kept."""
    save_steps: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints, and between measurements of --validation."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many measurements of --validation without a new best one; 0: never."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
    """Trackers that also get the history; each must be installed."""
    push_to_hub: str | None = None
    """Hub repository to upload the student to at the end; the token comes from `hf auth login`."""
    dry_run: bool = False
    """Audit the examples, estimate memory and saving, and stop."""
    seed: int = 0
    """Seed of data order and of new adapter weights."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU where there is one."""


class ExportConfig(Config):
    """Write step examples as files that other trainers read."""

    data: Path
    """Folder made by `steper build`."""
    out: Path
    """Run folder."""
    tasks: tuple[Task, ...] = TASKS
    """Abilities to write: any of `initialization`, `expansion`, `aggregation`."""


class EvaluateConfig(Config):
    """Run a student, base model or teacher on questions and score it."""

    model: str
    """A student folder, a model folder or hub id, `annotated` or `world`."""
    index: Path
    """Index folder."""
    questions: Path
    """Questions file."""
    out: Path
    """Run folder."""
    split: str | None = None
    """Use only the questions of this split."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many questions."""
    rules: Rules = "hotpotqa"
    """Whose official scoring rules apply."""
    chains: Path | None = None
    """File of reasoning chains written by people, for the annotated teacher."""
    strategy: Literal["ircot", "single-step"] | None = None
    """How searching and writing alternate; a student folder brings its own."""
    prompt: str | None = None
    """Prompt wording; a student folder brings its own."""
    layout: PromptLayout | None = None
    """Prompt layout, `grouped` or `interleaved`; a student folder brings its own."""
    k: int | None = Field(default=None, ge=1)
    """Passages per search; a student folder brings its own."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most steps per question; a student folder brings its own."""
    error_rate: float = Field(default=0.05, ge=0.0, lt=1.0)
    """How often the `world` teacher misreads a fact."""
    max_tokens: int = Field(default=128, ge=1)
    """Most tokens of one sentence that a model writes."""
    device: str = "auto"
    """Where a model runs: `auto` takes a GPU where there is one; or `cpu`, `cuda:1`, …"""
    seed: int = 0
    """Seed of the bootstrap intervals and of the `world` teacher's errors."""


class ReportConfig(Config):
    """Write one self-contained HTML page about trained and evaluated runs."""

    evaluations: Positional[tuple[Path, ...]]
    """Folders made by `steper evaluate`, in the order to show."""
    out: Path
    """HTML file."""
    trainings: tuple[Path, ...] = ()
    """Folders made by `steper train`, whose curves to draw."""


class RecallConfig(Config):
    """Measure how often the index finds the gold passages of questions."""

    index: Path
    """Index folder."""
    questions: Path
    """Questions with supporting titles."""
    split: str | None = None
    """Use only the questions of this split."""
    json_out: Path | None = None
    """Also write the figures to this JSON file."""
    seed: int = 0
    """Seed of the bootstrap intervals."""


class AskConfig(Config):
    """Answer one question, printing each step as it happens."""

    question: Positional[str]
    """The question."""
    model: str
    """A student folder, or a model folder or hub id."""
    index: Path
    """Index folder."""
    device: str = "auto"
    """Where the model runs: `auto` takes a GPU where there is one; or `cpu`, `cuda:1`, …"""


class DemoConfig(Config):
    """The whole road in the offline world: corpus to evaluated students and a report."""

    out: Path = Path("runs/demo")
    """Folder for everything the demo makes."""
    seeds: int = Field(default=1, ge=1)
    """How many times to train and evaluate, with different data orders and worlds."""
    equal_tokens: bool = False
    """Also train Vanilla-KD for as many tokens as StepER."""
    train_questions: int = Field(default=400, ge=20)
    """Questions for the teacher."""
    test_questions: int = Field(default=200, ge=10)
    """Held-out questions."""
    split: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of entities told of in two passages: how often finding one is not finding the fact."""
