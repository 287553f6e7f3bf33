"""The seams: small Protocols that every retriever, language model, strategy and filter fits.

A new backend is one class with the right method; nothing is registered and nothing inherited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from steper.types import Passage, Question, Step, Trajectory


class Retriever(Protocol):
    """Finds passages for queries."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages, best first; ``[]`` where none match."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked to write at one step.

    ``prompt`` is the rendered text for models that read text. The other fields are the same facts
    in structure, for scripted and annotated teachers.

    Attributes:
        passages: P≤s, those of the step under way included.
        final: whether the prompt already ends with the answer cue.
    """

    prompt: str
    question: Question
    steps: tuple[Step, ...]
    passages: tuple[Passage, ...]
    final: bool


class LM(Protocol):
    """Writes the next sentence."""

    def complete(self, requests: Sequence[Request]) -> list[str]:
        """Return one text per request, in order: what follows the request's prompt.

        A text may run on past one sentence; the rollout keeps the first line.
        """
        ...


@dataclass(frozen=True, slots=True)
class Search:
    """Strategy's order: retrieve ``k`` passages for ``query``."""

    query: str


@dataclass(frozen=True, slots=True)
class Generate:
    """Strategy's order: have the model write; ``final`` asks for the answer."""

    final: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """Strategy's order: the run is over with this answer."""

    answer: str
    stopped: Literal["answer", "limit"]


class Strategy(Protocol):
    """Decides what happens next in one run; does no I/O."""

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None
    ) -> Search | Generate | Finish:
        """Return the next action.

        Args:
            question: the question of the run.
            steps: the completed steps.
            searched: the search already done for the step under way, ``None`` before it.
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
