"""Run a strategy on many questions at once: the only place where searching and writing happen.

Teacher rollouts, evaluation and single questions share this driver, so they cannot drift apart.
Questions in flight advance together, so that searches and completions come in batches.

>>> trajectories = run(questions, setting=setting, retriever=index, lm=lm)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from steper.prompts import ANSWER_CUE, Template, first_sentence
from steper.protocols import LM, Finish, Generate, Request, Retriever, Search
from steper.setting import Setting
from steper.strategies import build_strategy
from steper.types import Passage, Question, Step, Trajectory


@dataclass(slots=True)
class _Run:
    """One question under way."""

    question: Question
    steps: list[Step] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    searched: Search | None = None
    new: tuple[Passage, ...] = ()

    def receive(self, found: Iterable[Passage]) -> None:
        """Append the passages not seen before, in retrieval order; nothing is ever re-sorted."""
        seen = {passage.id for passage in self.passages}
        self.new = tuple({p.id: p for p in found if p.id not in seen}.values())
        self.passages += self.new

    def write(self, sentence: str) -> Step:
        """Close the step under way with its sentence."""
        query = self.searched.query if self.searched else ""
        step = Step(query, self.new, sentence)
        self.steps.append(step)
        self.searched, self.new = None, ()
        return step


def run(
    questions: Iterable[Question],
    *,
    setting: Setting,
    retriever: Retriever,
    lm: LM,
    in_flight: int = 64,
    on_step: Callable[[Question, Step], None] | None = None,
) -> Iterator[Trajectory]:
    """Yield each question's trajectory as soon as it is complete (not in question order).

    Args:
        questions: taken one by one, so they may come from a stream.
        setting: strategy, prompt wording, passages per search.
        retriever: where passages come from.
        lm: who writes.
        in_flight: questions advanced together.
        on_step: called after each completed step, for live display.
    """
    strategy = build_strategy(setting.strategy, max_steps=setting.max_steps)
    waiting = iter(questions)
    active = [_Run(question) for question in islice(waiting, in_flight)]
    while active:
        generating: list[tuple[_Run, Generate]] = []
        searching: list[tuple[_Run, Search]] = []
        going: list[_Run] = []
        for item in active:
            match strategy.next(item.question, item.steps, item.searched):
                case Finish(answer, stopped):
                    yield Trajectory(item.question, tuple(item.steps), answer, stopped)
                    continue
                case Search() as search:
                    searching.append((item, search))
                case Generate() as generate:
                    generating.append((item, generate))
            going.append(item)
        _search(searching, retriever, setting.k)
        _generate(generating, lm, setting.template, on_step)
        going += [_Run(q) for q in islice(waiting, in_flight - len(going))]
        active = going


def _search(items: list[tuple[_Run, Search]], retriever: Retriever, k: int) -> None:
    if not items:
        return
    found = retriever.search([search.query for _, search in items], k)
    for (item, search), passages in zip(items, found, strict=True):
        item.searched = search
        item.receive(passages)


def _generate(
    items: list[tuple[_Run, Generate]],
    lm: LM,
    template: Template,
    on_step: Callable[[Question, Step], None] | None,
) -> None:
    if not items:
        return
    requests = [
        Request(
            prompt=template.render(
                item.question.question,
                [*(step.passages for step in item.steps), item.new],
                [step.reasoning for step in item.steps],
                final=order.final,
            ),
            question=item.question,
            steps=tuple(item.steps),
            passages=tuple(item.passages),
            final=order.final,
        )
        for item, order in items
    ]
    for (item, order), text in zip(items, lm.complete(requests), strict=True):
        step = item.write(first_sentence((ANSWER_CUE if order.final else "") + text))
        if on_step:
            on_step(item.question, step)
