"""A rollout loses nothing: failures are kept, a budget stops it, a sample foretells its costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from faults import Call, Stub, http, said
from road import rollout_config
from steper import rollout as module
from steper.accounts import Prices, Purse, paid
from steper.config import EvaluateConfig, IndexConfig, RolloutConfig
from steper.driver import HOPELESS
from steper.errors import BudgetSpent, CompletionError, Outage, SteperError
from steper.evaluate import evaluate
from steper.index import build_index
from steper.protocols import LM, Completion, Request, Usage
from steper.rollout import RunUsage, read_trajectories, rollout
from steper.store import read_json, read_records, write_records
from steper.types import Failure, Question
from steper.world.generator import World
from steper.world.teacher import WorldTeacher

QUESTIONS = 24


class Priced:
    """The world's teacher behind a counter: each call costs, some questions fail."""

    def __init__(self, purse: Purse | None, broken: set[str] | None = None) -> None:
        self.calls, self.purse, self.broken = 0, purse or Purse(), broken or set()
        self.dies_after = 10**9
        self._teacher = WorldTeacher(error_rate=0.1)

    async def complete(self, request: Request) -> Completion:
        if request.question.id in self.broken and request.steps:
            raise CompletionError("the server has hung up.", where="http://localhost:1")
        if self.calls >= self.dies_after:
            raise Outage("no answer after 9 attempts.", where="http://localhost:1")
        used = Usage(prompt_tokens=len(request.prompt), completion_tokens=10, seconds=0.5)
        cost = Prices(prompt=1000.0).cost(used)
        async with self.purse.hold(cost):
            self.calls += 1
            completion = await self._teacher.complete(request)
            self.purse.pay(cost)
        used = Usage(used.prompt_tokens, 0, 10, 0.5, cost)
        return Completion(completion.text, used)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rollout")
    world = World.generate(seed=0, part="train", entities=60)
    write_records(path / "corpus.jsonl", world.passages.values())
    write_records(path / "questions.jsonl", world.questions(QUESTIONS, seed=0))
    build_index(IndexConfig(source=str(path / "corpus.jsonl"), out=path / "index"))
    return path


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Priced]]:
    """Replaces the command's teacher; what is returned fills with those that were made."""

    def set_broken(*ids: str) -> list[Priced]:
        made: list[Priced] = []

        def build(*_: object, purse: Purse | None = None, **__: object) -> LM:
            made.append(Priced(purse, set(ids)))
            return made[-1]

        monkeypatch.setattr(module, "build_lm", build)
        return made

    return set_broken


def asked(count: int, *, several_hops: bool = False) -> list[Question]:
    """Other questions about the fixture's world."""
    questions = World.generate(seed=0, part="train", entities=60).questions(count, seed=1)
    return [q for q in questions if len(q.chain) > 1 or not several_hops]


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file, without how long the runs took by the clock."""
    return {
        path.name: re.sub(rb', "seconds": [\d.]+}\n', b"}\n", path.read_bytes())
        for path in folder.glob("*.jsonl")
    }


def test_a_failed_question_is_kept_with_its_reason_and_retried_when_told(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    teachers()
    clean = rollout(rollout_config(folder, tmp_path / "clean"))
    broken = [t.id for t in read_trajectories(clean) if len(t.steps) > 1][3]

    teachers(broken)
    config = rollout_config(folder, tmp_path / "out")
    rollout(config)
    (failure,) = read_records(tmp_path / "out" / "failed.jsonl", Failure)
    assert (failure.id, failure.step) == (broken, 2)
    assert failure.reason == "http://localhost:1: the server has hung up."
    counts = read_json(tmp_path / "out" / "manifest.json")["counts"]
    assert (counts["runs"], counts["failed"]) == (QUESTIONS - 1, 1)
    before = files(tmp_path / "out")

    made = teachers()
    rollout(config)
    assert not made and files(tmp_path / "out") == before, "finished: nothing is tried again"

    rollout(config.model_copy(update={"retry_failed": True}))
    steps = next(t.steps for t in read_trajectories(clean) if t.id == broken)
    assert made[0].calls == len(steps), "only the failed question was run"
    assert files(tmp_path / "out") == files(clean)
    assert read_json(tmp_path / "out" / "manifest.json")["counts"]["failed"] == 0


def test_what_fails_again_is_still_kept(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    made = teachers()
    clean = read_trajectories(rollout(rollout_config(folder, tmp_path / "clean")))
    ids = [t.id for t in clean if len(t.steps) > 1][:2]
    teachers(*ids)
    config = rollout_config(folder, tmp_path / "out")
    rollout(config)
    before = files(tmp_path / "out")
    made = teachers(*ids)
    rollout(config.model_copy(update={"retry_failed": True}))
    assert made[0].calls == 2, "the first step of either"
    assert files(tmp_path / "out") == before


def test_where_everything_fails_the_run_stops(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    questions = asked(200, several_hops=True)
    write_records(tmp_path / "questions.jsonl", questions)
    teachers(*(q.id for q in questions))
    config = rollout_config(
        folder, tmp_path / "out", questions=tmp_path / "questions.jsonl", concurrency=1
    )
    with pytest.raises(SteperError, match=r"20 questions failed and none succeeded.*hung up"):
        rollout(config)
    assert len(read_records(tmp_path / "out" / "failed.jsonl", Failure)) == HOPELESS


@pytest.mark.parametrize("concurrency", [1, 64])
def test_a_budget_stops_the_run_and_a_higher_one_goes_on(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]], concurrency: int
) -> None:
    made = teachers()
    clean = rollout(rollout_config(folder, tmp_path / "clean"))
    whole = made[0].purse.spent

    made = teachers()
    config = rollout_config(folder, tmp_path / "out", budget=whole / 3, concurrency=concurrency)
    with pytest.raises(BudgetSpent, match=r"is used up: .* spent.*Raise it"):
        rollout(config)
    assert 0 < made[0].purse.spent <= whole / 3
    assert read_json(tmp_path / "out" / "manifest.json")["status"] == "running"

    rollout(config.model_copy(update={"budget": 2 * whole}))
    assert files(tmp_path / "out") == files(clean)
    if concurrency == 1:
        # Without a cache the question under way is all that is paid for twice.
        assert whole < made[1].purse.spent < whole * 1.1, "the ledger knows of both sessions"


def test_a_dry_run_foretells_and_pays_nothing_twice(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    made = teachers()
    said: list[str] = []
    config = rollout_config(folder, tmp_path / "out")
    sample = config.model_copy(update={"dry_run": True, "dry_run_questions": 8})
    rollout(sample, say=said.append)
    (table,) = said
    assert "8 questions" in table and f"all {QUESTIONS}" in table
    assert read_json(tmp_path / "out" / "manifest.json")["status"] == "running"
    cost = next(line.split() for line in table.splitlines() if "cost" in line)
    rollout(config)
    whole = sum(used.cost for run in usage(tmp_path / "out") for used in run.steps)
    assert made[1].purse.spent == pytest.approx(whole)
    assert float(cost[1]) == pytest.approx(made[0].purse.spent, abs=0.005)
    low, high = float(cost[3]), float(cost[5])
    assert low <= whole <= high, "the interval holds what it came to"


def usage(folder: Path) -> list[RunUsage]:
    return read_records(folder / "usage.jsonl", RunUsage)


def test_several_samples_are_runs_of_their_own(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    teachers()
    rollout(rollout_config(folder, tmp_path / "out", samples=3, temperature=0.7))
    trajectories = read_trajectories(tmp_path / "out")
    assert len({t.id for t in trajectories}) == len(trajectories) == 3 * QUESTIONS
    assert {t.id.removeprefix(t.question.id) for t in trajectories} == {"", "~1", "~2"}


def test_drawing_twice_at_temperature_zero_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"--samples: draws the same each time"):
        rollout(rollout_config(folder, tmp_path / "out", samples=2))
    assert not (tmp_path / "out").exists()


def test_means_may_change_when_a_run_is_resumed_but_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    config = rollout_config(folder, tmp_path / "out")
    rollout(config)
    rollout(config.model_copy(update={"concurrency": 3, "budget": 1.0, "cache": "none"}))
    changed: RolloutConfig = config.model_copy(update={"k": 3})
    with pytest.raises(SteperError, match=r"another run \(config.k: 2 there, 3 now\)"):
        rollout(changed)


def test_usage_is_written_step_by_step(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    teachers()
    rollout(rollout_config(folder, tmp_path / "out"))
    steps = {t.id: len(t.steps) for t in read_trajectories(tmp_path / "out")}
    used = usage(tmp_path / "out")
    assert {run.id: len(run.steps) for run in used} == steps
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts["completion_tokens"] == 10 * sum(steps.values())
    assert counts["cost"] == pytest.approx(sum(u.cost for run in used for u in run.steps))


@pytest.mark.parametrize("force", [False, True])
def test_evaluation_takes_the_options_of_a_rollout(
    folder: Path, tmp_path: Path, force: bool
) -> None:
    config = EvaluateConfig(
        model="world",
        index=str(folder / "index"),
        questions=folder / "questions.jsonl",
        out=tmp_path / "out",
        strategy="interleaved",
        k=2,
        max_steps=8,
        max_passages=6,
        force_search=force,
    )
    result = read_json(evaluate(config) / "results.json")
    assert result["setting"]["max_passages"] == 6
    assert result["setting"].get("force_search", False) == force
    runs = read_trajectories(tmp_path / "out")
    assert {run.stopped for run in runs} <= {"answer", "budget", "limit"}
    # The first sentence is asked for without a search, unless one is forced.
    assert all(bool(run.steps[0].query) == force for run in runs)
    assert (result["usage"]["search_rate"] > 0.8) == force


def test_a_server_that_dies_midway_stops_the_run_instead_of_failing_the_rest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "q.jsonl", asked(200))
    teacher = Priced(None)
    monkeypatch.setattr(module, "build_lm", lambda *_, **__: teacher)
    config = rollout_config(folder, tmp_path / "out", questions=tmp_path / "q.jsonl", concurrency=4)
    teacher.dies_after = 300
    with pytest.raises(SteperError, match=r"no server answered any more.*--retry-failed"):
        rollout(config)
    assert read_json(tmp_path / "out" / "manifest.json")["status"] == "running"
    failed = read_records(tmp_path / "out" / "failed.jsonl", Failure)
    assert HOPELESS <= len(failed) < HOPELESS + 4
    teacher.dies_after = 10**9
    rollout(config.model_copy(update={"retry_failed": True}))
    assert len(read_trajectories(tmp_path / "out")) == 200


def test_retrying_questions_that_fail_again_leaves_a_finished_run_finished(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    questions = asked(60, several_hops=True)
    write_records(tmp_path / "q.jsonl", questions)
    config = rollout_config(folder, tmp_path / "out", questions=tmp_path / "q.jsonl")
    broken = [q.id for q in questions[-HOPELESS - 5 :]]
    teachers(*broken)
    rollout(config.model_copy(update={"concurrency": 1}))
    assert read_json(tmp_path / "out" / "manifest.json")["counts"]["failed"] == len(broken)
    made = teachers(*broken)
    for _ in range(2):
        rollout(config.model_copy(update={"retry_failed": True}))
        assert read_json(tmp_path / "out" / "manifest.json")["status"] == "finished"
    assert made[-1].calls >= len(broken), "all of them were tried again"
    rollout(config.model_copy(update={"retry_failed": True, "dry_run": True}))
    assert read_json(tmp_path / "out" / "manifest.json")["status"] == "finished"


def test_where_every_question_failed_nothing_is_finished(
    folder: Path, tmp_path: Path, teachers: Callable[..., list[Priced]]
) -> None:
    few = asked(60, several_hops=True)[:3]
    write_records(tmp_path / "q.jsonl", few)
    teachers(*(q.id for q in few))
    with pytest.raises(SteperError, match="all 3 questions failed"):
        rollout(rollout_config(folder, tmp_path / "out", questions=tmp_path / "q.jsonl"))
    assert read_json(tmp_path / "out" / "manifest.json")["status"] == "running"


def test_a_wording_that_changes_under_a_run_is_refused(folder: Path, tmp_path: Path) -> None:
    wording = tmp_path / "mine.toml"
    wording.write_text('instruction = "Be brief."\npassage = "{title}: {text}"\n')
    config = rollout_config(folder, tmp_path / "out", prompt=str(wording))
    rollout(config)
    rollout(config)
    wording.write_text('instruction = "Be long."\npassage = "{title}: {text}"\n')
    with pytest.raises(SteperError, match=r"config\.prompt: '\S+mine\.toml [0-9a-f]{12}' there"):
        rollout(config)


def test_inputs_are_known_by_what_they_hold_not_by_their_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout(rollout_config(folder, tmp_path / "out"))
    monkeypatch.chdir(folder)
    relative = {"index": Path("index"), "questions": Path("questions.jsonl")}
    rollout(rollout_config(folder, tmp_path / "out", **relative))


def test_an_id_that_is_another_questions_sample_is_refused(folder: Path, tmp_path: Path) -> None:
    one, other = asked(2)
    write_records(tmp_path / "q.jsonl", [replace(one, id="a"), replace(other, id="a~1")])
    config = rollout_config(
        folder, tmp_path / "out", questions=tmp_path / "q.jsonl", samples=2, temperature=1.0
    )
    with pytest.raises(SteperError, match="'a~1' is also what sample 1 of question 'a' is called"):
        rollout(config)
    rollout(config.model_copy(update={"samples": 1}))


def test_a_torn_payment_is_cut_off_before_the_next(tmp_path: Path) -> None:
    ledger = tmp_path / "spent.log"
    Purse(ledger=ledger).pay(0.25)
    ledger.write_text(ledger.read_text() + "7.2e")
    purse = Purse(spent=paid(ledger), ledger=ledger)
    purse.pay(0.5)
    assert purse.spent == paid(ledger) == 0.75


def test_a_budget_without_prices_is_refused(folder: Path, tmp_path: Path) -> None:
    config = rollout_config(
        folder, tmp_path / "out", teacher="m", base_url=("http://localhost:9/v1",), budget=1.0
    )
    with pytest.raises(SteperError, match=r"--budget: is never reached.*--price-prompt"):
        rollout(config)


def test_after_a_typo_in_the_models_name_the_folder_can_be_used(
    folder: Path, tmp_path: Path
) -> None:
    def answer(call: Call) -> bytes:
        if call.path.endswith("/models"):
            return http(200, {"data": [{"id": "student"}]})
        if call.asked["model"] != "student":
            return http(404, {"error": {"message": "no such model"}})
        return said("So the answer is: x.")

    with Stub(answer) as stub:
        config = EvaluateConfig(
            model="studnet",
            base_url=(stub.url,),
            api="completions",
            prompt="world",
            index=str(folder / "index"),
            questions=folder / "questions.jsonl",
            out=tmp_path / "out",
        )
        with pytest.raises(SteperError, match=r"no model studnet.*Did you mean student"):
            evaluate(config)
        evaluate(config.model_copy(update={"model": "student"}))
    assert read_json(tmp_path / "out" / "results.json")["n"] == QUESTIONS


def test_two_students_served_under_one_name_are_not_taken_for_each_other(
    folder: Path, tmp_path: Path
) -> None:
    for said_by in ("first", "second"):
        with Stub(lambda _, name=said_by: said(f"So the answer is: {name}.")) as stub:
            evaluate(
                EvaluateConfig(
                    model="student",
                    base_url=(stub.url,),
                    api="completions",
                    prompt="world",
                    index=str(folder / "index"),
                    questions=folder / "questions.jsonl",
                    out=tmp_path / said_by,
                )
            )
        assert {run.answer for run in read_trajectories(tmp_path / said_by)} == {said_by}
