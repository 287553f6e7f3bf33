"""A language model judges by a published rubric (a file in templates/).

What is judged is asked about in one request, and answered in one line of JSON, read strictly. What
cannot be read is *unscored*: it drops nothing, counts as no 0, and is reported. `steper build` has
steps rated so for its filter, by judge.toml; `steper judge` grades whole evaluations.

>>> read_verdict('{"supported": true, "useful": false, "reason": "Said before."}')
Rating(supported=True, useful=False, reason='Said before.')
>>> read_verdict("It is supported.") is None
True
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from steper.driver import HOPELESS, Hope
from steper.errors import BudgetSpent, CompletionError, Outage, SteperError
from steper.prompts import one_line
from steper.protocols import LM, Completion, Drop, Request, Turn
from steper.store import Log, fingerprint
from steper.types import STRICT, Trajectory

LONGEST = 10_000
"""Characters of an answer that are read; no verdict is as long."""


# ---- asking ----------------------------------------------------------------------------------


class Judged(Protocol):
    """What a log of verdicts holds."""

    @property
    def id(self) -> str:
        """What it is about."""
        ...

    @property
    def error(self) -> str:
        """Why the judge wrote nothing; empty where it did."""
        ...


V = TypeVar("V", bound=Judged)
V_co = TypeVar("V_co", bound=Judged, covariant=True)


class Item(Protocol[V_co]):
    """One thing to have judged."""

    @property
    def id(self) -> str:
        """As of its verdict."""
        ...

    def request(self) -> Request:
        """What the judge is asked."""
        ...

    def verdict(self, completion: Completion) -> V_co:
        """What the judge wrote, read."""
        ...

    def failure(self, error: str) -> V_co:
        """A verdict that says why there is none."""
        ...


async def ask_all(
    items: Sequence[Item[V]], lm: LM, log: Log[V], *, unit: str, in_flight: int = 64
) -> None:
    """Have everything judged that the log does not hold yet, and finish the log.

    Where a completion failed, the verdict is a failure, and is asked for again when the stage is
    resumed.

    Args:
        items: what to judge.
        lm: who judges.
        log: gets each verdict at once.
        unit: what an item is called.
        in_flight: requests under way at once.

    Raises:
        SteperError: if no request can be answered, or the budget is spent; the log keeps the rest.
    """
    judged = {verdict.id for verdict in log if not verdict.error}
    waiting = [item for item in items if item.id not in judged]
    bar = tqdm(total=len(items), initial=len(items) - len(waiting), unit=unit, desc="judge")
    share = iter(waiting)

    spent: list[BudgetSpent] = []
    hope = Hope(limit=min(HOPELESS, len(waiting)))

    async def work() -> None:
        for item in share:
            try:
                verdict, outage = await _ask(item, lm)
            except BudgetSpent as error:
                # Raised at the end only: the calls under way are paid for, so they are waited for.
                spent.append(error)
                return
            log.append(verdict)
            bar.update()
            if not verdict.error:
                hope.went_well()
                continue
            hope.failed(outage=outage)
            if hope.lost:
                raise SteperError(
                    f"{hope.bad} {unit}s could not be judged; the last: {verdict.error}",
                    where="--judge",
                    fix="Mend the cause and run the same command: it goes on where it stopped.",
                )
            if spent:
                return

    with bar:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    if spent:
        raise spent[0]
    log.finish()


async def _ask(item: Item[V], lm: LM) -> tuple[V, bool]:
    """The verdict, and whether there is none because no server answered."""
    try:
        return item.verdict(await lm.complete(item.request())), False
    except CompletionError as error:
        return item.failure(str(error)), isinstance(error, Outage)


def judge_request(
    trajectory: Trajectory, number: int, rubric: Mapping[str, str] | None = None
) -> Request:
    """What the judge is asked about step ``number``, from 1: it sees what the step could see.

    Args:
        trajectory: the run that is judged.
        number: the last step that is shown.
        rubric: the wording; by default the filter's.
    """
    rubric = rubric or load_rubric("judge")
    steps = trajectory.steps[: number - 1]
    step = trajectory.steps[number - 1]
    passages = tuple(p for s in (*steps, step) for p in s.passages)
    shown = [
        rubric["passage"].format(title=one_line(p.title), text=one_line(p.text)) for p in passages
    ]
    earlier = [f"{n}. {one_line(s.reasoning)}" for n, s in enumerate(steps, start=1)]
    asked = rubric["step"].format(
        question=one_line(trajectory.question.question),
        passages="\n".join(shown) or rubric["none"],
        earlier="\n".join(earlier) or rubric["none"],
        sentence=one_line(step.reasoning),
    )
    turns = (Turn("system", rubric["rubric"]), Turn("user", asked), Turn("assistant", ""))
    return Request(
        turns,
        question=trajectory.question,
        steps=steps,
        passages=passages,
        final=False,
        nudge=rubric["nudge"],
        sample=trajectory.sample,
    )


@cache
def load_rubric(name: str) -> dict[str, str]:
    """The texts of a rubric file, by key."""
    file = resources.files("steper.templates") / f"{name}.toml"
    return {k: v.strip() for k, v in tomllib.loads(file.read_text(encoding="utf-8")).items()}


def rubric_sha256(name: str = "judge") -> str:
    """The SHA-256 of a rubric and the wording around it; another one makes another run."""
    return fingerprint(load_rubric(name))


# ---- reading ---------------------------------------------------------------------------------


def read_object(text: str, keys: Collection[str]) -> dict[str, Any] | None:
    """The JSON object in a judge's answer, ``None`` unless there is exactly one, with these keys.

    Words around it are allowed, and what a model thinks aloud before ``</think>``. Two objects, and
    further, missing or repeated keys are not.
    """
    answer = text.rpartition("</think>")[2][:LONGEST]
    # Pairs instead of a dict, so that repeated keys show.
    decoder = json.JSONDecoder(object_pairs_hook=list)
    start = answer.find("{")
    if start < 0:
        return None
    try:
        pairs, end = decoder.raw_decode(answer, start)
    except (ValueError, RecursionError):
        return None
    values: dict[str, Any] = dict(pairs)
    if "{" in answer[end:] or len(pairs) != len(keys) or values.keys() != set(keys):
        return None
    return values


def read_reason(text: str) -> str:
    """A judge's reason as one line of text; JSON can spell half characters, which are none."""
    return one_line(text.encode(errors="replace").decode())


# ---- the filter of `steper build` ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rating:
    """What the judge says of a step."""

    __pydantic_config__ = STRICT

    supported: bool
    useful: bool
    reason: str


def read_verdict(text: str) -> Rating | None:
    """The rating in a judge's answer, ``None`` unless there is exactly one and it is flawless."""
    match read_object(text, ("supported", "useful", "reason")):
        case {"supported": bool(supported), "useful": bool(useful), "reason": str(reason)}:
            return Rating(supported, useful, read_reason(reason))
    return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged step; one line of ``verdicts.jsonl``.

    Attributes:
        step: its number, from 1.
        rating: ``None`` where the step is unscored.
        raw: what the judge wrote, where that could not be read.
        error: why it wrote nothing, where it did not.
    """

    __pydantic_config__ = STRICT

    trajectory_id: str
    step: int
    rating: Rating | None
    raw: str = ""
    error: str = ""

    @property
    def id(self) -> str:
        """Trajectory and step, as in the ids of examples."""
        return f"{self.trajectory_id}#{self.step}"


@dataclass(frozen=True, slots=True)
class _Step:
    """A step to have rated."""

    trajectory: Trajectory
    number: int

    @property
    def id(self) -> str:
        return f"{self.trajectory.id}#{self.number}"

    def request(self) -> Request:
        return judge_request(self.trajectory, self.number)

    def verdict(self, completion: Completion) -> Verdict:
        rating = read_verdict(completion.text)
        raw = "" if rating else completion.text[:LONGEST]
        return Verdict(self.trajectory.id, self.number, rating, raw)

    def failure(self, error: str) -> Verdict:
        return Verdict(self.trajectory.id, self.number, None, error=error)


async def judge(
    trajectories: Sequence[Trajectory], lm: LM, log: Log[Verdict], *, in_flight: int = 64
) -> dict[str, list[Verdict]]:
    """Have every step rated; see ``ask_all``. Returns the verdicts by trajectory."""
    steps = [_Step(t, n) for t in trajectories for n in range(1, len(t.steps) + 1)]
    await ask_all(steps, lm, log, unit="step", in_flight=in_flight)
    by_trajectory: dict[str, list[Verdict]] = {}
    for verdict in sorted(log, key=lambda v: v.step):
        by_trajectory.setdefault(verdict.trajectory_id, []).append(verdict)
    return by_trajectory


@dataclass(frozen=True, slots=True)
class JudgeFilter:
    """Drops a trajectory with a step that is rated as unsupported or useless.

    Attributes:
        verdicts: of each trajectory that was judged, by its id; others pass.
    """

    verdicts: Mapping[str, Sequence[Verdict]]
    name: str = "judge"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the first badly rated step; unscored ones say nothing."""
        for verdict in self.verdicts.get(trajectory.id, ()):
            if verdict.rating and not (verdict.rating.supported and verdict.rating.useful):
                fault = "useless" if verdict.rating.supported else "unsupported"
                return Drop(self.name, f"step {verdict.step} is {fault}: {verdict.rating.reason}")
        return None
