"""From a rollout folder to examples: what is kept, what is counted, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from faults import Call, Stub, said
from steper.build import REJECTED, Rejected, build, read_examples, yield_table
from steper.config import BuildConfig
from steper.errors import BudgetSpent, CompletionError, SteperError
from steper.models import RUN_SETTING, read_setting, write_setting
from steper.prompts import Demonstration, DemonstrationStep, Template
from steper.protocols import Completion, Request
from steper.setting import Setting
from steper.store import Run, read_records, require_finished, write_records
from steper.types import Passage, Question, Step, Trajectory

CLARK = Passage("1", "Roy Clark", "Roy Clark hosted Hee Haw.")
HALSEY = Passage("2", "Jim Halsey", "Jim Halsey managed Roy Clark.")
BRIDGE = Question(
    "q", "Which show did Jim Halsey's client host?", "Hee Haw", type="bridge",
    supporting_titles=("Roy Clark", "Jim Halsey"),
)  # fmt: skip
OTHER = replace(BRIDGE, id="r", type="comparison")
SETTING = Setting("ircot", Template("Answer.", "{title}: {text}"), k=2, max_steps=5)


def run(question: Question, *steps: tuple[Sequence[Passage], str], sample: int = 0) -> Trajectory:
    made = tuple(Step("", tuple(passages), reasoning) for passages, reasoning in steps)
    answer = made[-1].reasoning.removeprefix("So the answer is: ").removesuffix(".")
    return Trajectory(question, made, answer, sample=sample)


ANSWER = ((), "So the answer is: Hee Haw.")
GOOD = run(BRIDGE, ([HALSEY], "Halsey managed Roy Clark."), ([CLARK], "He hosted it."), ANSWER)
LONG = run(
    BRIDGE, ([HALSEY], "Halsey managed Roy Clark."), ([CLARK], "He hosted it."),
    ((), "It is a show."), ANSWER, sample=1,
)  # fmt: skip
MADE_UP = run(OTHER, ([CLARK], "It was hosted by Buck Owens."), ANSWER)
WRONG = run(
    replace(OTHER, id="s"), ([CLARK], "It was hosted by Buck Owens."),
    ((), "By Buck Owens it was hosted."),
    ((), "So the answer is: Soul Train."),
)  # fmt: skip


@pytest.fixture
def rolled(tmp_path: Path) -> Path:
    stage = Run.open(tmp_path / "rollout", stage="rollout", config={}, inputs={})
    write_records(stage.path / "trajectories.jsonl", [GOOD, LONG, MADE_UP, WRONG])
    write_setting(stage.path / RUN_SETTING, SETTING)
    stage.finish({})
    return stage.path


def built(rolled: Path, out: str, **options: object) -> tuple[Path, dict[str, object]]:
    folder = build(BuildConfig(rollout=rolled, out=rolled.parent / out, **options))  # type: ignore[arg-type]
    return folder, require_finished(folder, stage="build")["counts"]


def rejects(folder: Path) -> dict[str, Rejected]:
    return {r.trajectory.id: r for r in read_records(folder / REJECTED, Rejected)}


def test_the_default_is_the_papers(rolled: Path) -> None:
    folder, counts = built(rolled, "examples")
    assert counts["dropped"] == {"answer": 1, "empty": 0, "repeat": 0}
    assert counts["alone"] == {"answer": 1, "empty": 0, "repeat": 1}
    assert (counts["kept"], counts["not_chosen"]) == (2, 1)
    dropped = rejects(folder)
    assert dropped.keys() == {"s", "q~1"}
    assert (dropped["s"].filter, dropped["s"].also) == ("answer", ("repeat",))
    assert (dropped["q~1"].filter, dropped["q~1"].reason) == ("choice", "q is better or was first")
    assert {example.trajectory_id for example in read_examples(folder)} == {"q", "r"}


def test_an_ablation_needs_no_new_rollout(rolled: Path) -> None:
    before = {p.name: p.read_bytes() for p in rolled.iterdir()}
    paper, _ = built(rolled, "paper")
    more, counts = built(rolled, "more", filters=("ungrounded", "answer", "gold", "no-gain"))
    assert {e.trajectory_id for e in read_examples(paper)} == {"q", "r"}
    assert {e.trajectory_id for e in read_examples(more)} == {"q"}
    assert counts["dropped"] == {"ungrounded": 2, "answer": 0, "gold": 0, "no-gain": 1}
    assert counts["alone"] == {"ungrounded": 2, "answer": 1, "gold": 2, "no-gain": 2}
    assert rejects(more)["s"].also == ("answer", "gold", "no-gain")
    kept = [e for e in read_examples(paper) if e.trajectory_id == "q"]
    assert kept == read_examples(more)
    assert {p.name: p.read_bytes() for p in rolled.iterdir()} == before


def test_kept_and_rejected_are_all(rolled: Path) -> None:
    for number, filters in enumerate([(), ("answer",), ("gold", "length", "empty")]):
        folder, counts = built(rolled, str(number), filters=filters, choose="all", max_steps=3)
        ids = {e.trajectory_id for e in read_examples(folder)}
        assert len(ids) == counts["kept"]
        assert ids.isdisjoint(rejects(folder))
        assert ids | rejects(folder).keys() == {"q", "q~1", "r", "s"}


def test_all_samples_give_examples_of_their_own(rolled: Path) -> None:
    folder, counts = built(rolled, "all", choose="all")
    examples = read_examples(folder)
    assert {e.trajectory_id for e in examples} == {"q", "q~1", "r"} and counts["not_chosen"] == 0
    assert len({e.id for e in examples}) == len(examples) == 9
    assert "q~1#4" in {e.id for e in examples}


def test_thresholds_reach_their_filters(rolled: Path) -> None:
    drops = [
        ({"filters": ("gold",), "min_gold_recall": 0.5}, 0),
        ({"filters": ("gold",), "min_gold_recall": 0.6}, 2),
        ({"filters": ("length",), "max_steps": 3}, 1),
        ({"filters": ("length",), "max_words": 6}, 0),
        ({"filters": ("length",), "min_words": 4}, 2),
    ]
    for number, (options, expected) in enumerate(drops):
        _, counts = built(rolled, f"out-{number}", choose="all", **options)
        assert sum(counts["dropped"].values()) == expected  # type: ignore[attr-defined]


def test_worked_examples_are_left_out_unless_asked_for(rolled: Path) -> None:
    shown = Demonstration("Who sang?", (DemonstrationStep("Clark sang.", (CLARK,)),))
    setting = replace(SETTING, template=replace(SETTING.template, examples=(shown,)))
    write_setting(rolled / RUN_SETTING, setting)
    bare, _ = built(rolled, "bare")
    full, _ = built(rolled, "full", few_shot=True)
    assert read_setting(bare / RUN_SETTING).template.examples == ()
    assert read_setting(full / RUN_SETTING) == setting
    assert not any("Who sang?" in e.prompt for e in read_examples(bare))
    assert all("Who sang?" in e.prompt for e in read_examples(full))


def test_the_yield_table_adds_up(rolled: Path) -> None:
    _, counts = built(rolled, "out", filters=("answer", "ungrounded"))
    rows = [line.split() for line in yield_table(counts).splitlines()]
    assert rows[0] == [
        "filter",
        "seen",
        "dropped",
        "left",
        "share",
        "alone",
        "bridge",
        "comparison",
    ]
    assert ["(all)", "4", "100%", "100%", "100%"] in rows
    assert ["answer", "4", "1", "3", "75%", "1", "100%", "50%"] in rows
    assert ["ungrounded", "3", "1", "2", "50%", "2", "100%", "0%"] in rows
    assert ["choice", "2", "1", "1", "25%", "50%", "0%"] in rows
    assert "examples: 1 initialization, 1 expansion, 1 aggregation" in yield_table(counts)


# ---- the judge -------------------------------------------------------------------------------


class Judge:
    """Calls Buck Owens unsupported and says nonsense of the longer run's third step."""

    def __init__(self) -> None:
        self.asked = list[str]()

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request.run_id)
        step = request.prompt.rpartition("check: ")[2]
        if step == "It is a show.":
            return Completion("I cannot tell.")
        supported = json.dumps("Buck Owens" not in step)
        return Completion(f'{{"supported": {supported}, "useful": true, "reason": ""}}')


def test_the_judge_sees_what_others_keep_and_the_unscored_stay(rolled: Path) -> None:
    config = BuildConfig(
        rollout=rolled, out=rolled.parent / "out", filters=("judge", "answer"), choose="all"
    )
    lm = Judge()
    folder = build(config, judge_lm=lm)
    assert set(lm.asked) == {"q", "q~1", "r"} and len(lm.asked) == 9
    counts = require_finished(folder, stage="build")["counts"]
    assert (counts["judged"], counts["unscored"]) == (9, 1)
    assert counts["dropped"] == {"judge": 1, "answer": 1}
    assert {e.trajectory_id for e in read_examples(folder)} == {"q", "q~1"}
    assert rejects(folder)["r"].filter == "judge"
    assert "judge: 9 steps, 1 of them unscored" in yield_table(counts)
    again = Judge()
    assert build(config, judge_lm=again) == folder and not again.asked


def test_a_judged_build_goes_on_with_a_higher_budget_and_keeps_no_secret(
    rolled: Path, tmp_path: Path
) -> None:
    """Budget and server may change when it is resumed; a login is in no file and no message."""

    def answer(_: Call) -> bytes:
        return said(
            json.dumps({"supported": True, "useful": True, "reason": ""}), prompt_tokens=1000
        )

    with Stub(answer) as stub:
        config = BuildConfig(
            rollout=rolled,
            out=tmp_path / "out",
            filters=("answer", "judge"),
            judge="stub",
            base_url=(stub.url.replace("//", "//me:S3CRET@"),),
            api="chat",
            cache=str(tmp_path / "cache.sqlite"),
            price_prompt=1000.0,
            budget=2.5,
        )
        with pytest.raises(BudgetSpent, match="Raise it"):
            build(config)
        moved = {"budget": 1000.0, "base_url": (stub.url,)}
        lines: list[str] = []
        folder = build(config.model_copy(update=moved), say=lines.append)
    counts = require_finished(folder, stage="build")["counts"]
    assert (counts["judged"], counts["unscored"], counts["failed"]) == (9, 0, 0)
    assert len({call.body for call in stub.calls}) == len(stub.calls) > 5
    assert any(line.startswith("calls: ") for line in lines)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"S3CRET" not in path.read_bytes(), path


def test_a_call_that_failed_is_made_again_when_told(rolled: Path, tmp_path: Path) -> None:
    class Flaky(Judge):
        async def complete(self, request: Request) -> Completion:
            if request.run_id == "q" and not self.asked:
                self.asked.append(request.run_id)
                raise CompletionError("too long.")
            return await super().complete(request)

    config = BuildConfig(rollout=rolled, out=tmp_path / "out", filters=("answer", "judge"))
    counts = require_finished(build(config, judge_lm=Flaky()), stage="build")["counts"]
    assert counts["failed"] == 1
    again = Judge()
    retried = build(config.model_copy(update={"retry_failed": True}), judge_lm=again)
    assert again.asked == ["q"]
    assert require_finished(retried, stage="build")["counts"]["failed"] == 0


def test_a_judge_and_its_filter_come_together(rolled: Path) -> None:
    out = rolled.parent / "out"
    with pytest.raises(SteperError, match="needs a model"):
        build(BuildConfig(rollout=rolled, out=out, filters=("answer", "judge")))
    with pytest.raises(SteperError, match="--filters answer empty repeat judge"):
        build(BuildConfig(rollout=rolled, out=out, judge="some-model"))
    with pytest.raises(SteperError, match="twice"):
        build(BuildConfig(rollout=rolled, out=out, filters=("answer", "answer")))
    assert not out.exists()


def test_nothing_left_is_an_error_that_names_the_filter(rolled: Path) -> None:
    with pytest.raises(SteperError, match=r"none of 4 .* dropped by 'length': step 1 has 4 words"):
        built(rolled, "out", filters=("length",), max_words=1)
    write_records(rolled / "trajectories.jsonl", [])
    with pytest.raises(SteperError, match="holds no trajectory"):
        built(rolled, "none")


def test_the_measurements_in_the_documentation_run(
    rolled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "filters.md").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["measure", str(rolled)])
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, {})
    printed = capsys.readouterr().out
    assert "answer 4 0\n" not in printed and "answer 4 1\n" in printed  # WRONG answers from nowhere
    assert "wrong false step 1\n" in printed and "right false step 3\n" in printed
