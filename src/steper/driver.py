"""Run a strategy on many questions at once: the only place where searching and writing happen.

Teacher rollouts, evaluation and single questions share this driver, so they cannot drift apart.
Every run is a coroutine that goes on as soon as what it waits for is there; searches that are asked
for at the same time come in one batch.

>>> trajectories = run(questions, setting=setting, retriever=index, lm=lm)  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from steper.batching import Batcher
from steper.errors import BudgetSpent, CompletionError, Outage
from steper.prompts import first_sentence
from steper.protocols import LM, Finish, Generate, Request, Retriever, Search, Strategy, Usage
from steper.selection import choose
from steper.setting import Setting
from steper.types import Failure, Passage, Question, Step, Stopped, Trajectory, run_id

T = TypeVar("T")
OnStep = Callable[[Question, Step], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: with a trajectory, or with a failure.

    Attributes:
        usage: what each step took, all its candidates together.
        outage: whether it failed because no server answered.
        seconds: from its first order to its end, waits for other runs included.
    """

    result: Trajectory | Failure
    usage: tuple[Usage, ...]
    outage: bool = False
    seconds: float = 0.0


HOPELESS = 20
"""So many failures in a row are not the fault of what was asked."""


@dataclass(slots=True)
class Hope:
    """Whether going on after failures makes sense.

    Attributes:
        good: how often it went well, in earlier sessions, too.
        limit: failures that end it where nothing went well.
        bad: failures.
        outages: failures in a row because no server answered.
    """

    good: int = 0
    limit: int = HOPELESS
    bad: int = 0
    outages: int = 0

    def went_well(self) -> None:
        """Count a success."""
        self.good, self.outages = self.good + 1, 0

    def failed(self, *, outage: bool) -> None:
        """Count a failure."""
        self.bad, self.outages = self.bad + 1, self.outages + 1 if outage else 0

    @property
    def lost(self) -> bool:
        """Whether nothing goes well, or no longer."""
        return self.outages >= HOPELESS or (self.bad >= self.limit and not self.good)


def run(
    questions: Iterable[Question],
    *,
    setting: Setting,
    retriever: Retriever,
    lm: LM,
    in_flight: int = 64,
    on_step: OnStep | None = None,
) -> Iterator[Trajectory]:
    """Yield each question's trajectory as soon as it is complete (not in question order).

    Args:
        questions: taken one by one, so they may come from a stream.
        setting: strategy, prompt wording, passages per search.
        retriever: where passages come from.
        lm: who writes.
        in_flight: questions advanced together.
        on_step: called after each completed step, for live display.

    Raises:
        CompletionError: if a completion cannot be had. ``outcomes`` goes on instead.
    """
    ended = outcomes(
        ((question, 0) for question in questions),
        setting=setting,
        retriever=retriever,
        lm=lm,
        in_flight=in_flight,
        on_step=on_step,
    )
    for outcome in in_step(ended):
        if isinstance(outcome.result, Failure):
            raise CompletionError(
                outcome.result.reason,
                where=f"question {outcome.result.id}, step {outcome.result.step}",
            )
        yield outcome.result


async def outcomes(
    runs: Iterable[tuple[Question, int]],
    *,
    setting: Setting,
    retriever: Retriever,
    lm: LM,
    in_flight: int = 64,
    candidates: int = 1,
    on_step: OnStep | None = None,
) -> AsyncIterator[Outcome]:
    """How each run ends, as soon as it does.

    Args:
        runs: questions, each with the number of the sample: which run on that question it is.
        setting: strategy, prompt wording, passages per search.
        retriever: where passages come from.
        lm: who writes.
        in_flight: runs advanced together.
        candidates: sentences drawn per step, of which the best is kept (``steper.selection``).
        on_step: called after each completed step, for live display.

    Raises:
        BudgetSpent: once every run under way has ended or come to its next call.
        SteperError: if no completion can be had at all.
    """
    driver = _Driver(setting, setting.build_strategy(), retriever, lm, candidates, on_step)
    waiting = (_Run(question, sample) for question, sample in runs)
    tasks: set[asyncio.Task[Outcome]] = set()
    spent: BudgetSpent | None = None
    try:
        while True:
            if spent is None:
                new = islice(waiting, in_flight - len(tasks))
                tasks |= {asyncio.create_task(driver.finish(item)) for item in new}
            if not tasks:
                break
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [error for task in done if (error := task.exception())]
            for task in done:
                if not task.exception():
                    yield task.result()
            for error in errors:
                if not isinstance(error, BudgetSpent):
                    raise error
                # What is under way is paid for already, so it is waited for.
                spent = error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if spent:
        raise spent


def in_step(results: AsyncIterator[Outcome]) -> Iterator[Outcome]:
    """From asynchronous to plain iteration; works inside a notebook's running loop, too."""

    async def following() -> Outcome | None:
        return await anext(results, None)

    async def close() -> None:
        generator: Any = results
        if not generator.ag_running:  # as it is where a second Ctrl-C cuts its end short
            await generator.aclose()

    with _loop() as complete:
        try:
            while (outcome := complete(following)) is not None:
                yield outcome
        finally:
            complete(close)


def wait_for(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of asynchronous work, also inside a notebook's running loop."""
    with _loop() as complete:
        result: T = complete(work)
    return result


@contextmanager
def _loop() -> Iterator[Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]]:
    """An event loop of our own, in another thread where this one has a loop running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            yield lambda work: runner.run(work())
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        runner = thread.submit(asyncio.Runner).result()
        try:
            yield lambda work: thread.submit(lambda: runner.run(work())).result()
        finally:
            thread.submit(runner.close).result()


@dataclass(slots=True)
class _Run:
    """One question under way."""

    question: Question
    sample: int = 0
    steps: list[Step] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    searched: Search | None = None
    new: tuple[Passage, ...] = ()
    asked: Stopped = "answer"
    begin: float = field(default_factory=time.monotonic)

    def receive(self, search: Search, found: Iterable[Passage]) -> None:
        """Append the passages not seen before, in retrieval order; nothing is ever re-sorted."""
        self.searched = search
        seen = {passage.id for passage in self.passages}
        self.new = tuple({p.id: p for p in found if p.id not in seen}.values())
        self.passages += self.new

    def write(self, sentence: str, candidates: tuple[str, ...]) -> Step:
        """Close the step under way with its sentence."""
        query = self.searched.query if self.searched else ""
        step = Step(query, self.new, sentence, candidates)
        self.steps.append(step)
        self.searched, self.new = None, ()
        return step

    def outcome(self, answer: str) -> Outcome:
        trajectory = Trajectory(self.question, tuple(self.steps), answer, self.asked, self.sample)
        return Outcome(trajectory, tuple(self.usage), seconds=self.seconds)

    def failure(self, error: CompletionError) -> Outcome:
        id_ = run_id(self.question, self.sample)
        step = len(self.steps) + 1
        failure = Failure(id_, self.question, self.sample, step, str(error))
        return Outcome(failure, tuple(self.usage), isinstance(error, Outage), self.seconds)

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return round(time.monotonic() - self.begin, 4)

    @property
    def tokens(self) -> int:
        """Tokens read and written so far."""
        return sum(used.prompt_tokens + used.completion_tokens for used in self.usage)


class _Driver:
    """What all runs share."""

    def __init__(
        self,
        setting: Setting,
        strategy: Strategy,
        retriever: Retriever,
        lm: LM,
        candidates: int,
        on_step: OnStep | None,
    ) -> None:
        self._setting, self._strategy, self._lm = setting, strategy, lm
        self._candidates, self._on_step = candidates, on_step
        self._search: Batcher[str, list[Passage]] = Batcher(
            lambda queries: retriever.search(queries, setting.k)
        )

    async def finish(self, item: _Run) -> Outcome:
        """Bring a run to its end."""
        while True:
            order = self._strategy.next(
                item.question, item.steps, item.searched, tokens=item.tokens
            )
            match order:
                case Finish(answer):
                    return item.outcome(answer)
                case Search(query):
                    item.receive(order, await self._search(query))
                case Generate(final):
                    try:
                        await self._write(item, final)
                    except CompletionError as error:
                        return item.failure(error)

    async def _write(self, item: _Run, final: Stopped | None) -> None:
        """Have the model write the sentence of the step under way."""
        item.asked = final or "answer"
        first = self._request(item, final=bool(final))
        requests = [replace(first, candidate=n) for n in range(self._candidates)]
        # All are waited for, also where one fails: the others are paid, too.
        ended = await asyncio.gather(
            *(self._lm.complete(request) for request in requests), return_exceptions=True
        )
        written = [one for one in ended if not isinstance(one, BaseException)]
        if written:
            item.usage.append(sum((completion.usage for completion in written), Usage()))
        if errors := [one for one in ended if isinstance(one, BaseException)]:
            # One that stops the run before one that fails the question.
            raise min(errors, key=lambda error: isinstance(error, CompletionError))
        cue = self._setting.template.answer_cue if final else ""
        # A server's answer to the cue may come without the blank before it, or on a new line.
        sentences = [first_sentence(f"{cue} {w.text.lstrip()}") for w in written]
        best = 0
        if len(sentences) > 1:
            said = [step.reasoning for step in item.steps]
            read = [f"{passage.title}\n{passage.text}" for passage in item.passages]
            sources = [item.question.question, *read, *said]
            best = choose(sentences, said=said, sources=sources)
        step = item.write(sentences[best], tuple(sentences) if len(sentences) > 1 else ())
        if self._on_step:
            self._on_step(item.question, step)

    def _request(self, item: _Run, *, final: bool) -> Request:
        template = self._setting.template
        return Request(
            turns=template.turns(
                item.question.question,
                [*(step.passages for step in item.steps), item.new],
                [step.reasoning for step in item.steps],
                final=final,
            ),
            question=item.question,
            steps=tuple(item.steps),
            passages=tuple(item.passages),
            final=final,
            answer_cue=template.answer_cue,
            search_cue=template.search_cue if self._setting.chooses_queries else "",
            nudge=template.nudge_final if final else template.nudge,
            sample=item.sample,
        )
