"""The seams: small Protocols that every retriever, language model, strategy and filter fits.

A new backend is one class with the right method; nothing is registered and nothing inherited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from steper.types import STRICT, Passage, Question, Step, Stopped, Trajectory, run_id


class Retriever(Protocol):
    """Finds passages for queries."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages, best first; ``[]`` where none match."""
        ...


ANSWER_CUE = "So the answer is:"
"""A sentence containing this ends the run, unless the wording has another."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's part of a prompt."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked to write at one step.

    Attributes:
        turns: the prompt. Their texts, put together, are the plain prompt. The last turn is the
            assistant's, under way and perhaps still empty; the model goes on where it ends.
        question: the question, for scripted and annotated teachers, as are the next three.
        steps: those completed.
        passages: P≤s, those of the step under way included.
        final: whether the prompt already ends with the answer cue.
        answer_cue: the words that announce an answer.
        search_cue: the words that announce a query; empty where every sentence is one.
        nudge: what a user would say to get the next sentence, for servers that cannot continue an
            assistant's turn.
        sample: which of several runs on the question this belongs to.
        candidate: which of several sentences for this step is asked for.
    """

    turns: tuple[Turn, ...]
    question: Question
    steps: tuple[Step, ...]
    passages: tuple[Passage, ...]
    final: bool
    answer_cue: str = ANSWER_CUE
    search_cue: str = ""
    nudge: str = ""
    sample: int = 0
    candidate: int = 0

    @property
    def prompt(self) -> str:
        """The plain prompt, for models that read text."""
        return "".join(turn.text for turn in self.turns)

    @property
    def run_id(self) -> str:
        """The run it belongs to; the requests of one run come one after the other."""
        return run_id(self.question, self.sample)

    def seed(self, base: int) -> int:
        """A seed of its own for each run, step and candidate, in [0, 2³¹)."""
        name = f"{base}/{self.run_id}/{len(self.steps)}/{self.candidate}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a language model draws its words.

    Attributes:
        temperature: 0 is greedy.
        top_p: share of the probability that is drawn from, in (0, 1].
        max_tokens: most tokens of one sentence.
        seed: of all draws; every request gets its own from it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 128
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one or several completions took.

    Attributes:
        prompt_tokens: tokens of the prompts, cached ones included.
        cached_tokens: those of them whose keys and values were at hand already.
        completion_tokens: tokens written.
        seconds: time of the calls.
        cost: price of the calls, in the currency of the prices given.
    """

    __pydantic_config__ = STRICT

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model wrote.

    Attributes:
        text: what follows the prompt. It may run on past one sentence; the first line is kept.
        usage: what it took; for a replayed completion, what it took when it was made.
        replayed: whether it came from a cache, so that nothing was spent on it now.
    """

    text: str
    usage: Usage = Usage()
    replayed: bool = False


class LM(Protocol):
    """Writes the next sentence."""

    async def complete(self, request: Request) -> Completion:
        """Return what follows the request's prompt.

        Many calls are under way at once; a model that works in batches collects them.

        Raises:
            CompletionError: if this one request cannot be answered; others may go on.
            SteperError: if no request can be answered; the run stops.
        """
        ...


@dataclass(frozen=True, slots=True)
class Search:
    """Strategy's order: retrieve passages for ``query``."""

    query: str


@dataclass(frozen=True, slots=True)
class Generate:
    """Strategy's order: have the model write; ``final`` asks for the answer, and says why now."""

    final: Stopped | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Strategy's order: the run is over with this answer; empty where none was given."""

    answer: str


class Strategy(Protocol):
    """Decides what happens next in one run; does no I/O."""

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None, *, tokens: int = 0
    ) -> Search | Generate | Finish:
        """Return the next action.

        Args:
            question: the question of the run.
            steps: the completed steps.
            searched: the search already done for the step under way, ``None`` before it.
            tokens: what the run has used so far, read and written.
        """
        ...


@dataclass(frozen=True, slots=True)
class Drop:
    """A filter's refusal, with the reason shown to the user and kept with the reject."""

    filter: str
    reason: str


class Filter(Protocol):
    """Judges one trajectory: keep (``None``) or drop with a reason."""

    @property
    def name(self) -> str:
        """The word shown in yield tables and kept with rejects."""
        ...

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Return ``None`` to keep the trajectory."""
        ...
