"""The nouns: every record that flows from corpus to report, as frozen dataclasses.

The flow is one-way: ``Passage`` and ``Question`` come in, a rollout makes a ``Trajectory`` of
``Step``s, ``build`` turns each trajectory into ``StepExample``s, evaluation gives a ``Score``.

>>> Passage(id="p1", title="Roy Clark", text="Roy Clark hosted Hee Haw.").text
'Roy Clark hosted Hee Haw.'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["initialization", "expansion", "aggregation"]
"""The three abilities of StepER: s = 1, 1 < s < S, s = S."""

PromptLayout = Literal["grouped", "interleaved"]
"""The order of passages and reasoning in a prompt; see ``steper.prompts``."""

StrategyName = Literal["ircot", "single-step", "self-ask", "interleaved", "closed-book"]
"""How searching and writing alternate; see ``steper.strategies``."""

Stopped = Literal["answer", "limit", "stuck", "budget"]
"""What ended a run: the model answered; the last allowed step asked for the answer; a sentence came
again, so the answer was asked for early; the passages or tokens allowed were used up."""

IndexKind = Literal["bm25", "dense", "hybrid", "lancedb", "opensearch", "elasticsearch"]
"""What searches: words, vectors, both fused; or an engine of its own, which can do all of these."""

Vectors = Literal["float32", "int8", "pq"]
"""How a vector's numbers are kept: as they are, in one byte each, or product-quantised."""

STRICT: dict[str, str] = {"extra": "forbid"}
"""Makes pydantic refuse unknown fields when it reads one of these records from a file."""

TASKS: tuple[Task, ...] = ("initialization", "expansion", "aggregation")


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable unit of text."""

    __pydantic_config__ = STRICT

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hop:
    """One link of a labelled reasoning chain: a sub-question, its answer, where it is written.

    ``statement`` is the fact as one sentence, where the data set has it.
    """

    __pydantic_config__ = STRICT

    question: str
    answer: str
    title: str
    statement: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its gold answer and, where the data set has them, its gold passages.

    Attributes:
        answer_aliases: other accepted answers, the gold answer not among them.
        type: the data set's own word ("bridge", "comparison", "2hop", ...).
        hops: number of links in the gold chain, 0 where unknown.
        chain: the gold chain, empty where unknown.
        split: "train", "dev" or "test".
    """

    __pydantic_config__ = STRICT

    id: str
    question: str
    answer: str
    answer_aliases: tuple[str, ...] = ()
    type: str = ""
    hops: int = 0
    supporting_titles: tuple[str, ...] = ()
    supporting_ids: tuple[str, ...] = ()
    chain: tuple[Hop, ...] = ()
    split: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every accepted answer, the gold one first."""
        return (self.answer, *self.answer_aliases)


@dataclass(frozen=True, slots=True)
class Step:
    """One step s of a trajectory: what was searched, what came back *new*, what was written.

    Attributes:
        query: the search text of this step.
        passages: the new passages of this step in retrieval order. Earlier ones are not repeated,
            so the concatenation over steps is P≤s.
        reasoning: the sentence r_s written at this step; at the last step, the answer sentence.
        candidates: where several sentences were drawn, all of them, the chosen one included.
    """

    __pydantic_config__ = STRICT

    query: str
    passages: tuple[Passage, ...]
    reasoning: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One run of multi-step retrieval-augmented reasoning on one question.

    Attributes:
        answer: the answer read from the last step; empty where none was given.
        stopped: what ended the run: see ``Stopped``.
        sample: which of several runs on the question this is, from 0.
    """

    __pydantic_config__ = STRICT

    question: Question
    steps: tuple[Step, ...]
    answer: str
    stopped: Stopped = "answer"
    sample: int = 0

    @property
    def id(self) -> str:
        """The question's id; for the second and later samples with their number."""
        return run_id(self.question, self.sample)

    @property
    def passages(self) -> tuple[Passage, ...]:
        """P≤S: all passages in retrieval order, each once."""
        return tuple(passage for step in self.steps for passage in step.passages)


def run_id(question: Question, sample: int) -> str:
    """The id of one run on a question: ``q``, then ``q~1``, ``q~2``, … for further samples."""
    return f"{question.id}~{sample}" if sample else question.id


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that came to no end, and why.

    Attributes:
        id: of the run, as ``Trajectory.id``.
        step: the step at which it failed, from 1.
    """

    __pydantic_config__ = STRICT

    id: str
    question: Question
    sample: int
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepExample:
    """One supervised example of Eq. 3: a prompt, and the target whose tokens are labels.

    The training text is ``prompt + target``; after an aggregation target the tokenising code adds
    the end-of-sequence token, because only it knows the tokenizer.
    """

    __pydantic_config__ = STRICT

    id: str
    trajectory_id: str
    task: Task
    step: int
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Score:
    """The quality of one answer, each in [0, 1]: exact match, token F1, answer contained."""

    __pydantic_config__ = STRICT

    em: float
    f1: float
    acc: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval, over ``n`` values."""

    __pydantic_config__ = STRICT

    value: float
    low: float
    high: float
    n: int = field(default=0)
