"""The report: computed verdicts, escaped content, sensible with little to show and with much."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steper.arms import Comparison, read_arms
from steper.config import ReportConfig
from steper.errors import SteperError
from steper.report import report, svg, write_report
from steper.report.figures import by_group, each_seed, recall_line, results, took
from steper.report.verdicts import answer, compare_pairs, default_pairs, verdicts
from steper.scores import MEASURES, score_trajectory, summarise
from steper.store import Run, write_json, write_records
from steper.types import Passage, Question, Step, Trajectory

HOSTILE = '<script>alert("1")</script>'
KINDS: tuple[dict[str, Any], ...] = ({"type": "bridge", "hops": 2}, {"type": "comparison"})


def evaluation(
    folder: Path, label: str, right: list[bool], *, text: str = "Fine.", **made: Any
) -> Path:
    """An evaluation folder as `steper evaluate` writes it, each question right or wrong.

    ``made`` are fields of its results.
    """
    run = Run.open(folder, stage="evaluate", config={"option": text}, inputs={})
    trajectories, scores = [], []
    for number, hit in enumerate(right):
        kind = KINDS[number % 2]
        question = Question(f"q{number}", f"Who {number}? {text}", "A", **kind)
        step = Step("query", (Passage("p", f"Title {text}", text),), f"So the answer is: {text}")
        trajectories.append(Trajectory(question, (step,), text))
        score = score_trajectory(trajectories[-1], "hotpotqa")
        value = float(hit)
        scores.append(replace(score, em=value, f1=value, acc=value, initialization=1.0))
    write_records(folder / "trajectories.jsonl", trajectories)
    write_records(folder / "scores.jsonl", scores)
    result: dict[str, Any] = {
        "label": label,
        "model": "m",
        "split": "test",
        "n": len(right),
        "seeds": [0],
        "questions_sha256": "q",
        "corpus_sha256": "c",
        "retriever": "bm25",
        "rules": "hotpotqa",
        "setting": {"strategy": "ircot", "k": 2, "max_steps": 5, "template": {}},
        "prompt_sha256": "0123456789abcdef",
        "versions": {"python": "3.11", "steper": "0.1.0"},
        "seconds": 1.0,
        "metrics": summarise(scores, seed=0),
        "failed": 0,
        "recall_by_step": [],
        "latency": {"median_s": 0.5, "p95_s": 0.7, "n": len(right)},
        "parameters": 1000,
    }
    assert set(result["metrics"]) == set(MEASURES)
    write_json(folder / "results.json", result | made)
    run.finish({})
    return folder


def training(folder: Path, *, learned: bool, expansion: tuple[float, ...] = (0.0,) * 4) -> Path:
    run = Run.open(folder, stage="train", config={"objective": "vanilla", "seed": 0}, inputs={})
    rows = [
        {"losses": [1.0, loss, 0.5], "weights": [0.5 + learned * step, 0.5, 0.5]}
        for step, loss in enumerate(expansion)
    ]
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run.finish({})
    return folder


class Tags(HTMLParser):
    """Collects what a browser would see as elements, and as text outside of `<style>`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.drawings: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "svg":
            self.drawings += [value for name, value in attrs if name == "aria-label" and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(tmp_path: Path, *evaluations: Path, **options: Any) -> Tags:
    page = write_report(evaluations, tmp_path / "r.html", **options).read_text(encoding="utf-8")
    return Tags(page)


# ---- the page --------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    arms = [
        evaluation(tmp_path / "a", "vanilla_kd", [True, False] * 20),
        evaluation(tmp_path / "b", "steper_difficulty", [True] * 40),
        evaluation(tmp_path / "c", "teacher", [True] * 40),
    ]
    runs = [training(tmp_path / "t", learned=True), training(tmp_path / "u", learned=False)]
    page = write_report(arms, tmp_path / "r.html", trainings=runs).read_text(encoding="utf-8")
    tags = Tags(page)
    # Exact match, initialization; two trainings' losses; one's σ and weights; each of these a key.
    assert tags.names.count("figure") == 5 and tags.names.count("svg") == 9
    assert tags.names.count("section") == 5
    assert len(set(re.findall(r'<svg role="img" aria-label="(.+?)"[^>]*><title>\1<', page))) == 9
    assert not {"script", "link", "img", "iframe"} & set(tags.names)
    assert not re.search(r'(?:src|href)="https?:', page.replace("http://www.w3.org", ""))
    assert len(tags.ids) == len(set(tags.ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(tags.ids)


def test_the_same_input_gives_the_same_page(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "base", [True, False])
    run = training(tmp_path / "t", learned=True)
    pages = {
        write_report([arm], tmp_path / f"{i}.html", trainings=[run]).read_bytes() for i in range(2)
    }
    assert len(pages) == 1


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", HOSTILE, [True], text=HOSTILE)
    run = training(tmp_path / "<script>t", learned=True)
    prose = dict.fromkeys(("title", "intro", "question", "command"), HOSTILE)
    out = write_report([arm], tmp_path / "r.html", trainings=[run], pairs=[], **prose)
    page = out.read_text(encoding="utf-8")
    assert "script" not in Tags(page).names
    # Title, introduction, question and command, label, gold question, answer, passage, manifest.
    assert Tags(page).text.count(HOSTILE) >= 9


@pytest.mark.parametrize("label", ["$\\oops{$", "_hidden", 'x id="y"', "a" * 300])
def test_any_label_can_be_drawn(tmp_path: Path, label: str) -> None:
    tags = page_of(tmp_path, evaluation(tmp_path / "a", label, [True, False]))
    assert tags.text.count(label[:20]) >= 3  # table, bars, legend
    assert len(tags.ids) == len(set(tags.ids))


def test_one_arm_is_enough_and_none_is_refused(tmp_path: Path) -> None:
    tags = page_of(tmp_path, evaluation(tmp_path / "a", "m", [True]))
    assert "So the answer is" in tags.text and "supervising" not in tags.text
    assert "the arm is right" in tags.text and "Training" not in tags.text
    with pytest.raises(SteperError, match="no evaluation given"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(SteperError, match=r"no manifest\.json"):
        write_report([tmp_path], tmp_path / "x.html")
    with pytest.raises(SteperError, match="is given twice"):
        write_report([tmp_path / "a", tmp_path / "b" / ".." / "a"], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_a_missing_trajectory_is_named(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", "m", [True])
    (folder / "trajectories.jsonl").write_text("")
    with pytest.raises(SteperError, match=r"trajectories\.jsonl: has no run of question q0"):
        write_report([folder], tmp_path / "x.html")


def test_the_introduction_and_every_manifest_are_shown(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "m", [True])
    run = training(tmp_path / "t", learned=False)
    tags = page_of(tmp_path, arm, trainings=[run], intro="One.\n\nTwo.")
    assert "One." in tags.text and "Two." in tags.text
    assert '"option": "Fine."' in tags.text and '"objective": "vanilla"' in tags.text


# ---- the verdict -----------------------------------------------------------------------------


def compared(*evaluations: Path) -> list[Comparison]:
    """The pairs that are compared where none are named."""
    arms = read_arms(evaluations)
    return compare_pairs(arms, default_pairs(arms))


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "words", "answered"),
    [
        ([True] * 40, [False] * 40, "higher", "is higher than vanilla_kd by 100.0", "Yes, here"),
        ([False] * 40, [True] * 40, "lower", "is lower than vanilla_kd by 100.0", "No: "),
        (
            [True, False] * 20,
            [False, True] * 20,
            "open",
            "cannot be told from",
            "These runs cannot tell",
        ),
        # Five wins of five: the bootstrap cannot see a loss, the exact test gives p = 1/16.
        (
            [True] * 5,
            [False] * 5,
            "open",
            "cannot be told from vanilla_kd",
            "These runs cannot tell",
        ),
    ],
)
def test_the_verdict_is_computed(
    tmp_path: Path, ours: list[bool], theirs: list[bool], kind: str, words: str, answered: str
) -> None:
    folders = [
        evaluation(tmp_path / "a", "vanilla_kd", theirs),
        evaluation(tmp_path / "b", "steper_uniform", ours),
    ]
    comparisons = compared(*folders)
    ((found, sentence),) = verdicts(comparisons)
    assert found == kind and words in sentence
    assert f"interval over {len(ours)} questions" in sentence and sentence.endswith(", one seed.")
    assert answer(comparisons).startswith(answered)


def test_every_steper_arm_meets_every_baseline_and_the_other(tmp_path: Path) -> None:
    labels = ["vanilla_kd_equal_tokens", "vanilla_kd", "steper_uniform", "steper_difficulty"]
    folders = [evaluation(tmp_path / label, label, [True]) for label in labels]
    found = [re.sub(r"[;(,].*", "", sentence) for _, sentence in verdicts(compared(*folders))]
    assert [sentence.replace(" cannot be told from ", " ~ ").strip() for sentence in found] == [
        "steper_uniform ~ vanilla_kd",
        "steper_difficulty ~ vanilla_kd",
        "steper_uniform ~ vanilla_kd_equal_tokens",
        "steper_difficulty ~ vanilla_kd_equal_tokens",
        "steper_difficulty ~ steper_uniform",
    ]


def test_arms_on_other_questions_are_not_compared(tmp_path: Path) -> None:
    """Ids are numbers in many data sets, so equal ids say nothing across question files."""
    folders = [
        evaluation(tmp_path / "a", "vanilla_kd", [True] * 40),
        evaluation(tmp_path / "b", "steper_uniform", [False] * 40, questions_sha256="other"),
    ]
    assert verdicts(compared(*folders)) == []
    text = page_of(tmp_path, *folders).text
    assert "share no questions" in text
    assert "The arms were evaluated with different questions" in text


def test_other_arms_are_compared_with_the_first(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / label, label, [True]) for label in "abc"]
    assert [sentence[:27] for _, sentence in verdicts(compared(*folders))] == [
        "b cannot be told from a (di",
        "c cannot be told from a (di",
    ]
    assert "supervising" not in page_of(tmp_path, *folders).text


def test_of_many_verdicts_those_that_tell_something_come_first(tmp_path: Path) -> None:
    same, wrong = [True, False] * 20, [False] * 40
    labels = [f"arm {number}" for number in range(8)]
    folders = [evaluation(tmp_path / x, x, wrong if x == "arm 7" else same) for x in labels]
    assert [kind for kind, _ in verdicts(compared(*folders))] == ["lower"] + ["open"] * 6
    tags = page_of(tmp_path, *folders)
    assert "Of 7 comparisons, 0 find the first arm higher and 1 lower; 6 cannot tell." in tags.text
    assert re.search(r"1 more\s+arm 6 cannot be told", tags.text)


# ---- seeds -----------------------------------------------------------------------------------


def test_seeds_of_one_label_are_averaged(tmp_path: Path) -> None:
    folders = [
        evaluation(
            tmp_path / f"{label}{seed}", label, [seed == 0] * 10, questions_sha256=f"q{seed}"
        )
        for seed in range(2)
        for label in ("vanilla_kd", "steper_uniform")
    ]
    arms = read_arms(folders)
    interval = arms["steper_uniform"].interval("em")
    assert interval is not None and interval.value == 0.5
    text = page_of(tmp_path, *folders).text
    assert re.search(r"interval over 20 questions [^,]+, over 2 seeds \+0.0 to \+0.0\.", text)
    table = each_seed(arms)
    assert table and [(label, run[0], em[0]) for label, (run, em, *_) in table.rows] == [
        ("vanilla_kd", "1", "100.0"),
        ("vanilla_kd", "2", "0.0"),
        ("steper_uniform", "1", "100.0"),
        ("steper_uniform", "2", "0.0"),
    ]


def test_each_seed_has_an_equal_share_of_the_mean(tmp_path: Path) -> None:
    """As in the printed table and results.json, whatever number of questions a measure has."""
    few = evaluation(tmp_path / "a", "m", [True] * 2, questions_sha256="q0")
    many = evaluation(tmp_path / "b", "m", [False] * 8, questions_sha256="q1")
    interval = read_arms([few, many])["m"].interval("em")
    assert interval is not None and interval.value == pytest.approx(0.5)


# ---- tables ----------------------------------------------------------------------------------


def test_kinds_of_questions_are_told_apart_with_their_intervals(tmp_path: Path) -> None:
    """The bridge questions, with even numbers and of 2 hops, are right."""
    arms = read_arms([evaluation(tmp_path / "a", "m", [True, False] * 5)])
    cells = [("100.0", "100.0 to 100.0", "100.0 / 100.0"), ("0.0", "0.0 to 0.0", "0.0 / 0.0")]
    for field, names in (("type", ["bridge", "comparison"]), ("hops", ["unknown", "2"])):
        table = by_group(arms, field)
        assert table and table.heads == [(name, "n = 5") for name in names]
        assert table.rows == [("m", cells if field == "type" else cells[::-1])]
    alone = read_arms([evaluation(tmp_path / "b", "m", [True])])
    assert by_group(alone, "type") is None


def test_no_share_is_above_all(tmp_path: Path) -> None:
    few = evaluation(tmp_path / "a", "m", [True] * 2, questions_sha256="q0")
    many = evaluation(tmp_path / "b", "m", [True] * 7 + [False], questions_sha256="q1")
    arms = read_arms([few, many])
    interval = arms["m"].interval("em")
    # Weighted to give both seeds their share, draws can go beyond what a share can be.
    assert interval and interval.high == 1
    assert results(arms).rows[0][1][0][1].endswith("to 100.0")


def test_what_no_arm_knows_takes_no_column(tmp_path: Path) -> None:
    (folder, other) = (evaluation(tmp_path / label, label, [True]) for label in "ab")
    heads = [head[0] for head in took(read_arms([folder])).heads]
    assert heads == ["steps", "searches", "median, s", "p95, s", "whole run, s"]
    for path, cost in ((folder, 0.0), (other, 0.012)):
        spend(path, cost)
    assert "cost" not in {head[0] for head in took(read_arms([folder])).heads}
    table = took(read_arms([folder, other]))
    place = [head[0] for head in table.heads].index("cost")
    assert [cells[place][0] for _, cells in table.rows] == ["0", "0.012"]


def spend(folder: Path, cost: float) -> None:
    """Let an evaluation have cost something."""
    path = folder / "scores.jsonl"
    rows = [json.loads(line) | {"cost": cost} for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = json.loads((folder / "results.json").read_text())
    result["metrics"]["cost"] = {"value": cost, "low": cost, "high": cost, "n": len(rows)}
    write_json(folder / "results.json", result)


# ---- an experiment ---------------------------------------------------------------------------


def experiment(folder: Path, **other: Any) -> Path:
    """What a report reads of an experiment of two arms, and a figure that it does not."""
    for label in ("low", "high"):
        evaluation(folder / "runs" / label, label, [label == "high"] * 40)
    training(folder / "train", learned=False)
    found = {
        "kind": "experiment",
        "question": "Does high do better?",
        "command": "steper experiment my.toml",
        "pairs": [["high", "low"]],
        "evaluations": ["runs/low", "runs/high"],
        "trainings": ["train"],
        "arms": {},
    }
    write_json(folder / "results.json", found | other)
    return folder


def test_an_experiment_is_reported_as_it_says(tmp_path: Path) -> None:
    out = report(ReportConfig(evaluations=(experiment(tmp_path / "exp"),)))
    assert out == tmp_path / "exp" / "report.html"
    tags = Tags(out.read_text(encoding="utf-8"))
    assert tags.text.count("high is higher than low by 100.0 points") == 1
    for text in ("Does high do better?", "steper experiment my.toml", "Training", "exp"):
        assert text in tags.text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"kind": "demo"}, r"results\.json: kind: "),
        ({"pairs": [["high", 1]]}, r"results\.json: pairs\.0\.1: "),
        ({"pairs": [["high", "lwo"]]}, "no evaluation is labeled 'lwo'"),
        ({"evaluations": ["gone"]}, r"gone: is not a run folder"),
    ],
)
def test_an_experiment_that_cannot_be_read_is_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    with pytest.raises(SteperError, match=message):
        report(ReportConfig(evaluations=(experiment(tmp_path / "exp", **other),)))
    assert not (tmp_path / "exp" / "report.html").exists()


def test_an_experiment_stands_alone_and_runs_need_a_page(tmp_path: Path) -> None:
    whole = experiment(tmp_path / "exp")
    run = whole / "runs" / "low"
    with pytest.raises(SteperError, match="Give it alone"):
        report(ReportConfig(evaluations=(whole, run)))
    with pytest.raises(SteperError, match="no page named"):
        report(ReportConfig(evaluations=(run,)))


# ---- figures ---------------------------------------------------------------------------------


def drawn(tags: Tags) -> str:
    """The names of the page's drawings."""
    return " | ".join(tags.drawings)


def test_size_and_latency_are_drawn_where_arms_differ_in_them(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / label, label, [True, False]) for label in ("a", "b")]
    assert "against accuracy" not in drawn(page_of(tmp_path, *folders))
    slow = {"median_s": 2.0, "p95_s": 3.0, "n": 2}
    folders += [evaluation(tmp_path / "c", "c", [True, False], parameters=10**9, latency=slow)]
    found = drawn(page_of(tmp_path, *folders))
    assert "Size against accuracy of each arm" in found
    assert "Latency against accuracy of each arm" in found


def test_recall_by_step_is_the_mean_over_seeds_each_keeping_its_end(tmp_path: Path) -> None:
    lines = ([0.5], [0.25, 1.0])
    folders = [
        evaluation(tmp_path / str(n), "a", [True], recall_by_step=line)
        for n, line in enumerate(lines)
    ]
    assert recall_line(read_arms(folders)["a"]) == [37.5, 75.0]
    assert "Recall by step, in percent" in drawn(page_of(tmp_path, *folders))


def test_many_arms_take_several_figures_of_lines(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / str(n), f"arm {n}", [True], recall_by_step=[0.5]) for n in range(9)
    ]
    tags = page_of(tmp_path, *folders)
    assert "Arms 1 to 5: recall" in drawn(tags) and "Arms 6 to 9: recall" in drawn(tags)
    assert "5 of 9 arms are shown" in tags.text


def test_a_step_without_examples_of_a_task_is_a_gap_not_zero(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "m", [True])
    run = training(tmp_path / "t", learned=False, expansion=(1.0, 2.0, 0.0, 1.0, 2.0))
    page = write_report([arm], tmp_path / "r.html", trainings=[run]).read_text(encoding="utf-8")
    panel = page[page.index('aria-label="loss, t"') :]
    path = re.search(rf'<path d="([^"]+)"[^>]*stroke: {svg.COLORS[1]}', panel)
    assert path and path[1].count("M") == 2


def test_a_training_is_called_as_the_arm_it_made(tmp_path: Path) -> None:
    run = training(tmp_path / "t", learned=False)
    arm = evaluation(tmp_path / "a", "my arm", [True], model=str(run / "student"))
    assert "loss, my arm" in drawn(page_of(tmp_path, arm, trainings=[run]))


def test_trainings_of_one_name_are_seeds_of_it(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "m", [True])
    runs = [training(tmp_path / str(seed) / "t", learned=False) for seed in range(2)]
    tags = page_of(tmp_path, arm, trainings=runs)
    assert "The bold line is the mean over seeds" in tags.text
    assert tags.names.count("figure") == 3


# ---- trajectories ----------------------------------------------------------------------------


def test_examples_show_both_sides(tmp_path: Path) -> None:
    #             both right ×5, StepER only ×5, vanilla only ×5, both wrong
    ours = [True] * 5 + [True] * 5 + [False] * 5 + [False]
    theirs = [True] * 5 + [False] * 5 + [True] * 5 + [False]
    teacher = evaluation(tmp_path / "c", "teacher", [True] * 16)
    text = page_of(
        tmp_path,
        evaluation(tmp_path / "a", "vanilla_kd", theirs),
        evaluation(tmp_path / "b", "steper_uniform", ours),
        teacher,
    ).text
    reasons = re.findall(r"Shown because ([^.]+)\.", text)
    gain = "vanilla_kd is wrong and steper_uniform right"
    loss = "vanilla_kd is right and steper_uniform wrong"
    assert reasons == [gain, loss, gain, loss, gain]
    first = text[text.index(gain) + len(gain) :]
    assert first.index("teacher") < first.index("steper_uniform")
