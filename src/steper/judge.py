"""A language model rates the steps of trajectories by a published rubric (templates/judge.toml).

Each step is asked about in one request, and answered in one line of JSON, read strictly. What
cannot be read is *unscored*: it drops nothing, counts as no 0, and is reported.

>>> read_verdict('{"supported": true, "useful": false, "reason": "Said before."}')
Rating(supported=True, useful=False, reason='Said before.')
>>> read_verdict("It is supported.") is None
True
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tqdm import tqdm

from steper.driver import HOPELESS, Hope
from steper.errors import BudgetSpent, CompletionError, Outage, SteperError
from steper.prompts import one_line
from steper.protocols import LM, Drop, Request, Turn
from steper.store import Log, fingerprint
from steper.types import STRICT, Trajectory

LONGEST = 10_000
"""Characters of an answer that are read; no verdict is as long."""

KEYS = dict.fromkeys(("supported", "useful", "reason")).keys()
"""Those of a verdict, in this order."""


@dataclass(frozen=True, slots=True)
class Rating:
    """What the judge says of a step."""

    __pydantic_config__ = STRICT

    supported: bool
    useful: bool
    reason: str


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


async def judge(
    trajectories: Sequence[Trajectory], lm: LM, log: Log[Verdict], *, in_flight: int = 64
) -> dict[str, list[Verdict]]:
    """Have every step rated that the log does not hold yet; returns the verdicts by trajectory.

    A step whose completion failed is unscored, and is asked about again when the stage is resumed.

    Args:
        trajectories: what to judge.
        lm: who judges.
        log: gets each verdict at once.
        in_flight: requests under way at once.

    Raises:
        SteperError: if no request can be answered, or the budget is spent; the log keeps the rest.
    """
    judged = {verdict.id for verdict in log if not verdict.error}
    steps = [(t, n) for t in trajectories for n in range(1, len(t.steps) + 1)]
    waiting = [(t, n) for t, n in steps if f"{t.id}#{n}" not in judged]
    bar = tqdm(total=len(steps), initial=len(steps) - len(waiting), unit="step", desc="judge")
    share = iter(waiting)

    spent: list[BudgetSpent] = []
    hope = Hope(limit=min(HOPELESS, len(waiting)))

    async def work() -> None:
        for trajectory, number in share:
            try:
                verdict, outage = await _verdict(trajectory, number, lm)
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
                    f"{hope.bad} steps could not be judged; the last: {verdict.error}",
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
    by_trajectory: dict[str, list[Verdict]] = {}
    for verdict in sorted(log, key=lambda v: v.step):
        by_trajectory.setdefault(verdict.trajectory_id, []).append(verdict)
    return by_trajectory


async def _verdict(trajectory: Trajectory, number: int, lm: LM) -> tuple[Verdict, bool]:
    """The verdict, and whether there is none because no server answered."""
    try:
        completion = await lm.complete(judge_request(trajectory, number))
    except CompletionError as error:
        unscored = Verdict(trajectory.id, number, None, error=str(error))
        return unscored, isinstance(error, Outage)
    rating = read_verdict(completion.text)
    raw = "" if rating else completion.text[:LONGEST]
    return Verdict(trajectory.id, number, rating, raw), False


def judge_request(trajectory: Trajectory, number: int) -> Request:
    """What the judge is asked about step ``number``, from 1: it sees what the step could see."""
    wording = _wording()
    steps = trajectory.steps[: number - 1]
    step = trajectory.steps[number - 1]
    passages = tuple(p for s in (*steps, step) for p in s.passages)
    shown = [
        wording["passage"].format(title=one_line(p.title), text=one_line(p.text)) for p in passages
    ]
    earlier = [f"{n}. {one_line(s.reasoning)}" for n, s in enumerate(steps, start=1)]
    asked = wording["step"].format(
        question=one_line(trajectory.question.question),
        passages="\n".join(shown) or wording["none"],
        earlier="\n".join(earlier) or wording["none"],
        sentence=one_line(step.reasoning),
    )
    turns = (Turn("system", wording["rubric"]), Turn("user", asked), Turn("assistant", ""))
    return Request(
        turns,
        question=trajectory.question,
        steps=steps,
        passages=passages,
        final=False,
        nudge=wording["nudge"],
        sample=trajectory.sample,
    )


def read_verdict(text: str) -> Rating | None:
    """The rating in a judge's answer, ``None`` unless there is exactly one and it is flawless.

    Words around it are allowed, and what a model thinks aloud before ``</think>``. Two objects,
    further, missing or repeated keys, and values of other types are not.
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
    values = dict(pairs)
    if "{" in answer[end:] or len(pairs) != 3 or values.keys() != KEYS:
        return None
    supported, useful, reason = (values[key] for key in KEYS)
    if type(supported) is not bool or type(useful) is not bool or not isinstance(reason, str):
        return None
    return Rating(supported, useful, one_line(reason))


def rubric_sha256() -> str:
    """The SHA-256 of the rubric and the wording around it; another one makes another run."""
    return fingerprint(_wording())


@cache
def _wording() -> dict[str, str]:
    file = resources.files("steper.templates") / "judge.toml"
    return {k: v.strip() for k, v in tomllib.loads(file.read_text(encoding="utf-8")).items()}
