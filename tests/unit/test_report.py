"""The report: computed verdicts, escaped content, sensible with little to show."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steper.errors import SteperError
from steper.evaluate import MEASURES, summarise
from steper.evaluate import QuestionScore as Score
from steper.report import read_arms, verdicts, write_report
from steper.store import Run, write_json, write_records
from steper.types import Passage, Question, Step, Trajectory

HOSTILE = '<script>alert("1")</script>'


def evaluation(folder: Path, label: str, right: list[bool], *, text: str = "Fine.") -> Path:
    """An evaluation folder as `steper evaluate` writes it, each question right or wrong."""
    run = Run.open(folder, stage="evaluate", config={}, inputs={})
    trajectories, scores = [], []
    for number, hit in enumerate(right):
        question = Question(f"q{number}", f"Who? {text}", "A", type="2hop")
        step = Step("query", (Passage("p", f"Title {text}", text),), f"So the answer is: {text}")
        trajectories.append(Trajectory(question, (step,), text))
        value = float(hit)
        scores.append(Score(question.id, value, value, value, None, 1.0, None, value, 1))
    write_records(folder / "trajectories.jsonl", trajectories)
    write_records(folder / "scores.jsonl", scores)
    result: dict[str, Any] = {
        "label": label,
        "model": "m",
        "split": "test",
        "n": len(right),
        "questions_sha256": "q",
        "corpus_sha256": "c",
        "rules": "hotpotqa",
        "setting": {"strategy": "ircot", "k": 2, "max_steps": 5, "template": {}},
        "seconds": 1.0,
        "metrics": summarise(scores, seed=0),
        "by_type": {"2hop": {"em": 0.5, "f1": 0.5, "acc": 0.5, "n": len(right)}},
    }
    assert set(result["metrics"]) == set(MEASURES)
    write_json(folder / "evaluation.json", result)
    run.finish({})
    return folder


def training(folder: Path, *, learned: bool) -> Path:
    run = Run.open(folder, stage="train", config={}, inputs={})
    rows = [
        {
            "losses": [1.0, 0.0, 0.5],
            "weights": [0.5, 0.5, 0.5],
            "state": {"x": [1]} if learned else {},
        }
        for _ in range(4)
    ]
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run.finish({})
    return folder


class Tags(HTMLParser):
    """Collects what a browser would see as elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    arms = [
        evaluation(tmp_path / "a", "vanilla_kd", [True, False] * 20),
        evaluation(tmp_path / "b", "steper_difficulty", [True] * 40),
        evaluation(tmp_path / "c", "teacher", [True] * 40),
    ]
    runs = [training(tmp_path / "t", learned=True), training(tmp_path / "u", learned=False)]
    page = write_report(arms, tmp_path / "r.html", trainings=runs).read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.names.count("figure") == tags.names.count("svg") == 4
    assert tags.names.count("section") == 5
    assert not {"script", "link", "img", "iframe"} & set(tags.names)
    assert not re.search(r'(?:src|href)="https?:', page.replace("http://www.w3.org", ""))
    assert len(tags.ids) == len(set(tags.ids))


def test_the_same_input_gives_the_same_page(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "base", [True, False])
    pages = {write_report([arm], tmp_path / f"{i}.html").read_bytes() for i in range(2)}
    assert len(pages) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "words"),
    [
        ([True] * 40, [False] * 40, "better", "beats vanilla_kd by 100.0 points"),
        ([False] * 40, [True] * 40, "worse", "is worse than vanilla_kd by 100.0 points"),
        ([True, False] * 20, [False, True] * 20, "open", "cannot be told from vanilla_kd"),
    ],
)
def test_the_verdict_is_computed(
    tmp_path: Path, ours: list[bool], theirs: list[bool], kind: str, words: str
) -> None:
    arms = [
        evaluation(tmp_path / "a", "vanilla_kd", theirs),
        evaluation(tmp_path / "b", "steper_uniform", ours),
    ]
    ((found, sentence),) = verdicts(read_arms(arms))
    assert found == kind and words in sentence and "40 answers over 1 seed." in sentence


def test_seeds_of_one_label_are_pooled(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / f"{label}{seed}", label, [seed == 0] * 10)
        for seed in range(2)
        for label in ("vanilla_kd", "steper_uniform")
    ]
    arms = read_arms(folders)
    interval = arms["steper_uniform"].interval("em")
    assert interval is not None and interval[0] == 0.5
    page = write_report(folders, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "100.0, 0.0" in page and "20 answers over 2 seeds" in page


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", HOSTILE, [True], text=HOSTILE)
    page = write_report([arm], tmp_path / "r.html", title=HOSTILE).read_text(encoding="utf-8")
    assert "script" not in Tags(page).names
    assert "&lt;script&gt;alert(" in page


def test_one_arm_is_enough_and_none_is_refused(tmp_path: Path) -> None:
    page = write_report([evaluation(tmp_path / "a", "m", [True])], tmp_path / "r.html").read_text()
    assert "So the answer is" in page
    with pytest.raises(SteperError, match="no evaluation given"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(SteperError, match=r"no manifest\.json"):
        write_report([tmp_path], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
