"""One typed, frozen configuration per command; the field docstrings are what ``--help`` prints.

Unknown keys are refused. Components never see a configuration: the verbs unpack it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from tyro.conf import Positional

from steper.types import TASKS, IndexKind, PromptLayout, StrategyName, Task, Vectors

Rules = Literal["hotpotqa", "2wikimultihopqa", "musique"]
FilterName = Literal[
    "answer", "empty", "repeat", "length", "ungrounded", "no-gain", "gold", "judge"
]


Where = Annotated[str, BeforeValidator(str)]
"""A path or an address; not a ``Path``, which would spoil the address's slashes."""


class Config(BaseModel):
    """Base of all configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class IndexConfig(Config):
    """Build a search index from documents (see docs/corpus.md and docs/retrieval.md).

    `steper index serve FOLDER` offers a finished index to other programs, `steper index check
    FOLDER` compares its files with what was written.
    """

    source: Positional[str]
    """Documents: a file (JSONL, JSON, CSV, TSV, Parquet, text, Markdown, HTML, PDF; also packed), a
    folder or archive of these, a data set saved with `save_to_disk`, or one of the Hugging Face hub
    as owner/name."""
    out: Path
    """Folder for the index."""
    kind: IndexKind = "bm25"
    """What searches: words (`bm25`), vectors (`dense`), both (`hybrid`); or, for corpora larger
    than memory or shared by several machines, `lancedb`, `opensearch`, `elasticsearch`."""
    language: str = "en"
    """Language of stop words and stemmer, as en, de, ko; `none` leaves words as they are."""
    add: bool = False
    """Add the documents to the index in --out (lancedb, opensearch, elasticsearch)."""

    fields: dict[str, str] = {}
    """Columns of records under other names than id, title, text: `--fields text body title name`
    says that our text is their body and our title their name."""
    other_fields: Literal["refuse", "ignore"] = "refuse"
    """What to do about further columns."""
    hub_config: str = ""
    """Which configuration of a hub data set."""
    hub_split: str = "train"
    """Which split of a data set."""
    chunk_words: int = Field(default=100, ge=1)
    """Most words of a passage cut from prose."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of it, instead of words; needs --tokenizer."""
    tokenizer: str = ""
    """Tokenizer that counts them: a folder or hub id."""
    overlap: int = Field(default=0, ge=0)
    """Sentences repeated from the end of the passage before."""
    cut_records: bool = False
    """Also cut the texts of records that are longer."""
    keep_duplicates: bool = False
    """Keep passages with the same title and text."""

    embedder: str = ""
    """Model that makes vectors: a folder or hub id of sentence-transformers. By default
    all-MiniLM-L6-v2 for `dense` and `hybrid`; the larger engines search by words alone without
    one."""
    query_prompt: str | None = None
    """Text put before every query, as "query: " for E5; by default what the model's folder says."""
    passage_prompt: str | None = None
    """Text put before every passage, as "passage: "."""
    vectors: Literal["auto"] | Vectors = "auto"
    """How a vector's numbers are kept: whole, in one byte each, or product-quantised."""
    reranker: str = ""
    """Cross-encoder that orders the best passages anew: a folder or hub id."""
    rerank_depth: int = Field(default=50, ge=1)
    """How many passages it reads for each query."""
    device: str = ""
    """Torch device for the embedder; by default a GPU where there is one."""

    uri: str = ""
    """Where the LanceDB database is, as s3://bucket/path; by default in --out."""
    urls: tuple[str, ...] = ()
    """Nodes of the OpenSearch or Elasticsearch cluster, as http://localhost:9200."""
    name: str = ""
    """Name of the index there; by default that of --out, in lower case."""
    workers: int = Field(default=0, ge=0)
    """Processes that analyze text; 0 for one a core."""


class ServeConfig(Config):
    """Offer an index to other programs over HTTP; name its address where an index is asked for."""

    index: Positional[Path]
    """Index folder."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets every machine that can reach this one search."""
    port: int = Field(default=8765, ge=0, le=65535)
    """Port to listen at; 0 takes a free one and prints it."""
    max_waiting: int = Field(default=2048, ge=1)
    """Most queries waiting; others are told to come again."""
    max_queries: int = Field(default=256, ge=1)
    """Most queries of one request."""
    max_k: int = Field(default=100, ge=1)
    """Most passages for one query."""


class CheckConfig(Config):
    """Compare every file of an index with what was written."""

    index: Positional[Path]
    """Index folder."""


class ModelOptions(Config):
    """How a language model is reached and how it draws its words.

    A command inherits these together with options of its own, named second so that --help shows its
    own first.
    """

    base_url: tuple[str, ...] = ()
    """OpenAI-compatible server(s), as http://localhost:8000/v1; the model's name is then its name
    there. Several share the work, and stand in for each other."""
    api: Literal["auto", "chat", "chat-prefix", "completions"] = "auto"
    """How a server is asked: `chat-prefix` continues the assistant's turn (vLLM, SGLang), `chat`
    asks for the next sentence in a conversation (any server), `completions` sends plain text (for
    students); `auto` finds out which of these the server can."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key."""
    timeout_s: float = Field(default=120.0, gt=0.0)
    """Seconds until an attempt is given up and made again."""
    retries: int = Field(default=8, ge=0)
    """Further attempts at a call that failed, after growing waits."""
    concurrency: int = Field(default=64, ge=1)
    """Most calls or questions under way at once; fewer where the server asks for it."""
    cache: str = ""
    """File with every completion ever paid for, so that none is paid twice; `none` for no cache. By
    default completions.sqlite in $STEPER_CACHE, else in ~/.cache/steper; of an evaluation, in its
    --out, because students are often served under one name."""
    price_prompt: float = Field(default=0.0, ge=0.0)
    """Price of a million prompt tokens, in any currency."""
    price_cached: float | None = Field(default=None, ge=0.0)
    """Price of a million prompt tokens that the server had cached; by default as any other."""
    price_completion: float = Field(default=0.0, ge=0.0)
    """Price of a million tokens written."""
    budget: float | None = Field(default=None, ge=0.0)
    """Most to spend on this run; it stops cleanly there, and a higher budget goes on."""
    backend: Literal["transformers", "paged", "vllm"] = "transformers"
    """How a model runs in process: `transformers`; `paged`, its continuous batching for CUDA; or
    `vllm` (pip install 'steper[vllm]')."""
    device: str = "auto"
    """Where a model in process runs: `auto` takes a GPU where there is one; or `cpu`, `cuda:1`."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 is greedy; several --samples or --candidates need more."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the probability that words are drawn from."""
    max_tokens: int = Field(default=128, ge=1)
    """Most tokens of one sentence that a model writes."""


MEANS = (
    "base_url api api_key_env timeout_s retries concurrency cache price_prompt price_cached "
    "price_completion budget backend device"
)
"""Options that change how a completion is come by, but not what a run is: they may change when it
is resumed."""


class _Rollout(Config):
    index: Where
    """Index folder, or the address of `steper index serve`."""
    questions: Path
    """Questions: JSONL, Parquet, or a release file of HotpotQA, 2WikiMultiHopQA or MuSiQue."""
    out: Path
    """Run folder."""
    teacher: str = "annotated"
    """`annotated` (gold chains of the data set), `world` (the offline world's reader), or a model:
    a folder, a hub id, or with --base-url the name of a model at a server."""
    chains: Path | None = None
    """File of reasoning chains written by people, for the annotated teacher."""
    strategy: StrategyName = "ircot"
    """How searching and writing alternate (see docs/strategies.md)."""
    prompt: str = ""
    """Prompt wording: a shipped one, as `ircot` or `ircot-ko`, or a file of your own (see
    docs/strategies.md). By default the strategy's English one."""
    layout: PromptLayout | None = None
    """`grouped`: all passages, then all reasoning; `interleaved`: step by step, on one text that
    only grows. By default the wording's own, else `grouped`."""
    k: int = Field(default=4, ge=1)
    """Passages per search."""
    max_steps: int = Field(default=5, ge=1)
    """Most steps per question (the paper's S)."""
    max_passages: int = Field(default=0, ge=0)
    """Ask for the answer once a question has so many passages; 0: no limit."""
    max_run_tokens: int = Field(default=0, ge=0)
    """Ask for the answer once a question took so many tokens, read and written; 0: no limit."""
    early_stop: bool = False
    """Ask for the answer as soon as a sentence is written a second time."""
    force_search: bool = False
    """Search at every step, also where the model may choose not to."""
    samples: int = Field(default=1, ge=1)
    """Runs per question; `steper build` keeps the best."""
    candidates: int = Field(default=1, ge=1)
    """Sentences drawn per step, of which the best is kept."""
    split: str | None = None
    """Use only the questions of this split."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many questions."""
    error_rate: float = Field(default=0.05, ge=0.0, lt=1.0)
    """How often the `world` teacher misreads a fact."""
    seed: int = 0
    """Seed of what a model draws and of the `world` teacher's errors."""
    retry_failed: bool = False
    """Try the questions again that failed before."""
    dry_run: bool = False
    """Run a few questions, say what all would take, and stop; what they cost is not paid again."""
    dry_run_questions: int = Field(default=20, ge=1)
    """How many questions --dry-run takes."""
    engine: Literal["local", "ray"] = "local"
    """`ray` shares the questions out to workers on a Ray cluster."""
    workers: int = Field(default=2, ge=1)
    """Workers of --engine ray."""
    worker_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of each worker of --engine ray."""


class RolloutConfig(ModelOptions, _Rollout):
    """Let a teacher answer questions step by step, searching the index."""


class _Build(Config):
    rollout: Path
    """Folder made by `steper rollout`."""
    out: Path
    """Run folder."""
    filters: tuple[FilterName, ...] = ("answer", "empty", "repeat")
    """Which filters drop trajectories, in this order: `answer`, `empty`, `repeat`, `length`,
    `ungrounded` (names what it has not read), `no-gain` (has a wasted step), `gold` (missed gold
    passages), `judge` (--judge says so). Each is counted alone, too."""
    measure: Literal["em", "f1", "acc"] = "em"
    """Measure of the answer filter."""
    threshold: float = Field(default=1.0, gt=0.0, le=1.0)
    """Least value of the measure that passes."""
    rules: Rules = "hotpotqa"
    """Whose official scoring rules apply."""
    min_words: int = Field(default=1, ge=0)
    """Fewest words of a sentence, for the `length` filter."""
    max_words: int = Field(default=80, ge=1)
    """Most words of a sentence, for the `length` filter."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most steps of a trajectory, for the `length` filter; by default any number."""
    min_gold_recall: float = Field(default=1.0, ge=0.0, le=1.0)
    """Least share of the gold titles found, for the `gold` filter."""
    judge: str | None = None
    """Model that rates every step for the `judge` filter: a folder, a hub id, or with --base-url
    the name of a model at a server. Only what no other filter drops is judged."""
    choose: Literal["best", "all"] = "best"
    """Of several kept samples of a question: `best` takes the one with the fewest steps, then the
    most gold titles; `all` takes all."""
    few_shot: bool = False
    """Keep the teacher's worked examples in the student's prompts."""
    layout: PromptLayout | None = None
    """Lay the prompts out anew, without a new rollout; the student is then asked in this layout.
    By default the rollout's."""
    targets: Literal["cumulative", "incremental"] | None = None
    """Whether a target repeats the earlier reasoning (Eq. 3) or holds the new sentence (Eq. 2). By
    default `cumulative` in the grouped layout; the interleaved one has `incremental` only."""
    retry_failed: bool = False
    """Ask the judge again where a call failed before."""


class BuildConfig(ModelOptions, _Build):
    """Filter trajectories and build the three kinds of example (see docs/filters.md)."""


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


class _Evaluate(Config):
    model: str
    """A student folder, a model folder or hub id, `annotated`, `world`, or with --base-url the name
    of a model at a server."""
    index: Where
    """Index folder, or the address of `steper index serve`."""
    questions: Path
    """Questions file."""
    out: Path
    """Run folder."""
    label: str = ""
    """Name of the run in tables and reports, where runs of one label are the seeds of one arm; by
    default the output folder's."""
    split: str | None = None
    """Use only the questions of this split."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many questions."""
    rules: Rules = "hotpotqa"
    """Whose official scoring rules apply."""
    chains: Path | None = None
    """File of reasoning chains written by people, for the annotated teacher."""
    strategy: StrategyName | None = None
    """How searching and writing alternate; a student folder brings its own."""
    prompt: str | None = None
    """Prompt wording; a student folder brings its own."""
    layout: PromptLayout | None = None
    """Prompt layout, `grouped` or `interleaved`; a student folder brings its own."""
    k: int | None = Field(default=None, ge=1)
    """Passages per search; a student folder brings its own."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most steps per question; a student folder brings its own."""
    max_passages: int | None = Field(default=None, ge=0)
    """Passages after which the answer is asked for; a student folder brings its own."""
    max_run_tokens: int | None = Field(default=None, ge=0)
    """Tokens after which the answer is asked for; a student folder brings its own."""
    early_stop: bool | None = None
    """Ask for the answer at a repeated sentence; a student folder brings its own."""
    force_search: bool | None = None
    """Whether to search at every step; a student folder brings its own."""
    setting: Path | None = None
    """The steper.json of a student that a server serves: asks it as it was taught."""
    error_rate: float = Field(default=0.05, ge=0.0, lt=1.0)
    """How often the `world` teacher misreads a fact."""
    seed: int = 0
    """Seed of draws, bootstrap intervals and the `world` teacher's errors."""
    retry_failed: bool = False
    """Try the questions again that failed before."""


class EvaluateConfig(ModelOptions, _Evaluate):
    """Run a student, base model or teacher on questions and score it."""


class _Judge(Config):
    evaluation: Positional[Path]
    """Folder made by `steper evaluate`."""
    judge: str
    """Model that judges: a folder, a hub id, or with --base-url the name of a model at a server."""
    out: Path
    """Run folder."""
    repeats: int = Field(default=1, ge=1)
    """How often each item is asked about, to see whether the judge says the same again."""
    limit: int | None = Field(default=None, ge=1)
    """Judge only so many runs, drawn by --seed."""
    seed: int = 0
    """Seed of draws and bootstrap intervals."""
    retry_failed: bool = False
    """Ask the judge again where a call failed before."""


class JudgeConfig(ModelOptions, _Judge):
    """Have a language model grade abilities and reasoning by rubrics (see docs/evaluation.md)."""


class ReportConfig(Config):
    """Write one self-contained HTML page about trained and evaluated runs, or an experiment."""

    evaluations: Positional[tuple[Path, ...]]
    """Folders made by `steper evaluate`, in the order to show; or the one of an experiment."""
    out: Path | None = None
    """HTML file; of an experiment, by default report.html in its folder."""
    trainings: tuple[Path, ...] = ()
    """Folders made by `steper train`, whose curves to draw."""


class CompareConfig(Config):
    """Compare evaluations in pairs, with intervals: every label with the first one.

    Runs of one label are the seeds of one arm (see docs/evaluation.md).
    """

    evaluations: Positional[tuple[Path, ...]]
    """Folders made by `steper evaluate`; each label is compared with the first one's."""
    measures: tuple[str, ...] = ("em", "f1", "acc", "recall", "steps")
    """What to compare: any measure of `scores.jsonl`."""
    json_out: Annotated[Path | None, tyro.conf.arg(aliases=["--json"])] = None
    """Also write the figures to this JSON file."""


class TrajectoriesConfig(Config):
    """Read a run's trajectories in the browser, or those of two runs side by side."""

    runs: Positional[tuple[Path, ...]]
    """One or two folders made by `steper rollout` or `steper evaluate`."""
    build: Path | None = None
    """Folder made by `steper build` from one of them: what its filters kept and dropped."""
    port: int = Field(default=8765, ge=0, le=65535)
    """Port of the page, on this machine only; 0 for any that is free."""
    out: Path | None = None
    """Write one HTML file with the first trajectories inside, and serve nothing."""
    limit: int = Field(default=200, ge=1)
    """How many trajectories the file holds."""
    open_browser: bool = True
    """Open the page in the browser."""


class RecallConfig(Config):
    """Measure how often indexes find the gold passages of questions, and how fast."""

    index: tuple[Where, ...]
    """Index folders, or addresses of `steper index serve`."""
    questions: tuple[Path, ...]
    """Questions with supporting titles: one file for each index, or one for all of them."""
    split: str | None = None
    """Use only the questions of this split."""
    json_out: Annotated[Path | None, tyro.conf.arg(aliases=["--json"])] = None
    """Also write the figures to this JSON file."""
    seed: int = 0
    """Seed of the bootstrap intervals."""


class _Ask(Config):
    question: Positional[str]
    """The question."""
    model: str
    """A student folder, a model folder or hub id, or with --base-url a model's name at a server."""
    index: Where
    """Index folder, or the address of `steper index serve`."""
    setting: Path | None = None
    """The steper.json of a student that a server serves: asks it as it was taught."""


class AskConfig(ModelOptions, _Ask):
    """Answer one question, printing each step as it happens."""


class ExperimentConfig(Config):
    """Run an experiment file: arms times seeds, compared and reported (see docs/evaluation.md)."""

    file: Positional[Path]
    """TOML file; ready ones are in configs/experiments/."""
    out: Path | None = None
    """Folder for everything; by default runs/ and the file's name."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Values, each with a --set of its own, that take precedence over the file's, as
    `train.base=Qwen/Qwen2.5-0.5B-Instruct` or `data.world.world.train_questions=100`."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the file's."""
    workers: int = Field(default=1, ge=1)
    """Most cells at once, as far as memory allows; of GPUs, each takes one."""
    engine: Literal["local", "ray"] = "local"
    """`ray` runs the cells as tasks on a Ray cluster, on folders that all machines share."""
    worker_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of each task of --engine ray."""
    dry_run: bool = False
    """Check the file, list the cells, and stop."""


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
