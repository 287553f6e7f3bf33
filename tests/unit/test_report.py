"""The report: computed verdicts, escaped content, sensible with little to show."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steper import plots
from steper.arms import read_arms
from steper.errors import SteperError
from steper.report import verdicts, write_report
from steper.scores import MEASURES, breakdown, recall_by_step, score_trajectory, summarise
from steper.store import Run, write_json, write_records
from steper.types import TASKS, Passage, Question, Step, Trajectory

HOSTILE = '<script>alert("1")</script>'


def evaluation(
    folder: Path, label: str, right: list[bool], *, text: str = "Fine.", questions: str = "q"
) -> Path:
    """An evaluation folder as `steper evaluate` writes it, each question right or wrong."""
    run = Run.open(folder, stage="evaluate", config={"option": text}, inputs={})
    trajectories, scores = [], []
    for number, hit in enumerate(right):
        question = Question(f"q{number}", f"Who {number}? {text}", "A", type="2hop")
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
        "questions_sha256": questions,
        "corpus_sha256": "c",
        "rules": "hotpotqa",
        "setting": {"strategy": "ircot", "k": 2, "max_steps": 5, "template": {}},
        "seconds": 1.0,
        "metrics": summarise(scores, seed=0),
        "failed": 0,
        "by_type": breakdown(scores, lambda s: s.type, seed=0),
        "by_hops": breakdown(scores, lambda s: "2", seed=0),
        "recall_by_step": recall_by_step(scores),
        "latency": {"median_s": 0.5, "p95_s": 0.7, "n": len(right)},
        "parameters": 1000,
    }
    assert set(result["metrics"]) == set(MEASURES)
    write_json(folder / "results.json", result)
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
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]

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
    # Exact match, steps; two trainings' losses and a key; one training's σ, weights and a key.
    assert tags.names.count("figure") == 4 and tags.names.count("svg") == 8
    assert tags.names.count("section") == 5
    assert len(set(re.findall(r'<svg role="img" aria-label="(.+?)"[^>]*><title>\1<', page))) == 8
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
    out = write_report([arm], tmp_path / "r.html", title=HOSTILE, intro=HOSTILE, trainings=[run])
    page = out.read_text(encoding="utf-8")
    assert "script" not in Tags(page).names
    # Label, question, answer, passage, manifest, title and introduction are all there to be read.
    assert Tags(page).text.count(HOSTILE) >= 7


@pytest.mark.parametrize("label", ["$\\oops{$", "_hidden", 'x id="y"', "a" * 300])
def test_any_label_can_be_drawn(tmp_path: Path, label: str) -> None:
    tags = page_of(tmp_path, evaluation(tmp_path / "a", label, [True, False]))
    assert tags.text.count(label[:20]) >= 3  # table, bars, legend
    assert len(tags.ids) == len(set(tags.ids))


def test_a_legend_names_every_arm() -> None:
    labels = ["_hidden", "b", "c" * 60]
    svg = plots.grouped_bars({key: [(1.0, 0.0, 2.0)] for key in labels}, ["t"], title="x")
    assert re.findall(r">\u200b?(_hidden|b|ccc[c…]+)</text>", svg) == [
        "_hidden",
        "b",
        "c" * 25 + "…",
    ]


def test_one_arm_is_enough_and_none_is_refused(tmp_path: Path) -> None:
    tags = page_of(tmp_path, evaluation(tmp_path / "a", "m", [True]))
    assert "So the answer is" in tags.text and "Not answered here" in tags.text
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


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "words", "answer"),
    [
        ([True] * 40, [False] * 40, "better", "beats vanilla_kd by 100.0 points", "Yes, here"),
        ([False] * 40, [True] * 40, "worse", "is worse than vanilla_kd by 100.0 points", "No: "),
        ([True, False] * 20, [False, True] * 20, "open", "cannot be told from", "cannot tell"),
        # Five wins of five: the bootstrap cannot see a loss, the exact test gives p = 1/16.
        ([True] * 5, [False] * 5, "open", "cannot be told from vanilla_kd", "cannot tell"),
    ],
)
def test_the_verdict_is_computed(
    tmp_path: Path, ours: list[bool], theirs: list[bool], kind: str, words: str, answer: str
) -> None:
    folders = [
        evaluation(tmp_path / "a", "vanilla_kd", theirs),
        evaluation(tmp_path / "b", "steper_uniform", ours),
    ]
    ((found, sentence),) = verdicts(read_arms(folders))
    assert found == kind and words in sentence
    assert f"{len(ours)} questions, 1 seed." in sentence
    assert answer in page_of(tmp_path, *folders).text


def test_every_steper_arm_meets_every_baseline_and_the_other(tmp_path: Path) -> None:
    labels = ["vanilla_kd_equal_tokens", "vanilla_kd", "steper_uniform", "steper_difficulty"]
    folders = [evaluation(tmp_path / label, label, [True]) for label in labels]
    found = [re.sub(r"[;(,].*", "", sentence) for _, sentence in verdicts(read_arms(folders))]
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
        evaluation(tmp_path / "b", "steper_uniform", [False] * 40, questions="other"),
    ]
    assert verdicts(read_arms(folders)) == []
    text = page_of(tmp_path, *folders).text
    assert "share no questions" in text
    assert "The arms were evaluated with different questions" in text


# ---- seeds -----------------------------------------------------------------------------------


def test_seeds_of_one_label_are_averaged(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / f"{label}{seed}", label, [seed == 0] * 10, questions=f"q{seed}")
        for seed in range(2)
        for label in ("vanilla_kd", "steper_uniform")
    ]
    arms = read_arms(folders)
    interval = arms["steper_uniform"].interval("em")
    assert interval is not None and interval.value == 0.5
    text = page_of(tmp_path, *folders).text
    assert "20 questions, 2 seeds" in text
    seeds = re.findall(r"steper_uniform\s*([12])\s*(\d+\.\d)", text)
    assert seeds == [("1", "100.0"), ("2", "0.0")]


def test_each_seed_has_an_equal_share_of_the_mean(tmp_path: Path) -> None:
    """As in the printed table and results.json, whatever number of questions a measure has."""
    few = evaluation(tmp_path / "a", "m", [True] * 2, questions="q0")
    many = evaluation(tmp_path / "b", "m", [False] * 8, questions="q1")
    interval = read_arms([few, many])["m"].interval("em")
    assert interval is not None and interval.value == pytest.approx(0.5)


def test_the_same_questions_again_do_not_narrow_an_interval(tmp_path: Path) -> None:
    right = [True, False] * 20
    folders = [evaluation(tmp_path / str(seed), "m", right) for seed in range(3)]
    three, one = (read_arms(some)["m"].interval("em") for some in (folders, folders[:1]))
    assert three and one and asdict(three) == pytest.approx(asdict(one))


def test_seeds_are_paired_by_their_questions_whatever_their_order(tmp_path: Path) -> None:
    def folder(label: str, seed: int) -> Path:
        right = [number % 2 == seed for number in range(40)]
        return evaluation(tmp_path / f"{label}{seed}", label, right, questions=f"q{seed}")

    order = [("vanilla_kd", 0), ("vanilla_kd", 1), ("steper_uniform", 1), ("steper_uniform", 0)]
    ((_, sentence),) = verdicts(read_arms([folder(*which) for which in order]))
    assert "interval +0.0 to +0.0" in sentence


# ---- figures ---------------------------------------------------------------------------------


def strokes(svg: str, color: str) -> list[str]:
    """The path data of lines drawn in a color."""
    return re.findall(rf'<path d="([^"]+)"[^>]*stroke: {color}', svg)


@pytest.mark.parametrize(("line", "pieces"), [([1.0] * 5, 1), ([1.0, 2.0, None, 1.0, 2.0], 2)])
def test_a_missing_value_is_a_gap(line: list[float | None], pieces: int) -> None:
    (svg,) = plots.panels({"run": [{"a": line}]}, ["a"], ylabel="loss", log=True)
    (path,) = strokes(svg, plots.COLORS[0])
    assert path.count("M") == pieces


def test_a_step_without_examples_of_a_task_is_a_gap_not_zero(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "m", [True])
    run = training(tmp_path / "t", learned=False, expansion=(1.0, 2.0, 0.0, 1.0, 2.0))
    page = write_report([arm], tmp_path / "r.html", trainings=[run]).read_text(encoding="utf-8")
    panel = page[page.index('aria-label="loss, t"') :]
    path = strokes(panel, plots.COLORS[1])[0]
    assert path.count("M") == 2


def test_a_value_between_two_gaps_is_a_dot() -> None:
    def drawn(line: list[float | None]) -> int:
        (svg,) = plots.panels({"run": [{"a": line}]}, ["a"], ylabel="loss")
        return len(re.findall(rf"<use [^>]*fill: {plots.COLORS[0]}", svg))

    assert drawn([1.0, 1.0, None, 1.0, None, 1.0, 1.0]) == 1
    assert drawn([1.0, 1.0, None, 1.0, 1.0]) == 0


def test_a_task_looks_the_same_in_every_panel_and_in_the_key() -> None:
    """Vanilla-KD, the first panel, has the last task only."""
    names = [str(task) for task in TASKS]
    groups = {"vanilla": [{names[2]: [1.0, 2.0]}], "steper": [{n: [1.0, 2.0] for n in names}]}
    vanilla, steper = plots.panels(groups, names, ylabel="loss")
    assert [len(strokes(vanilla, color)) for color in plots.COLORS[:3]] == [0, 0, 1]
    assert [len(strokes(steper, color)) for color in plots.COLORS[:3]] == [1, 1, 1]
    key = plots.legend(names, title="key")
    drawn = re.findall(r"stroke: (#\w+)|>(\w+)</text>", key)
    assert [color or text for color, text in drawn] == [
        word for pair in zip(plots.COLORS, names, strict=False) for word in pair
    ]


def test_each_seed_of_a_training_is_drawn_and_their_mean() -> None:
    runs = [{"a": [1.0, 2.0]}, {"a": [3.0, 4.0]}]
    (svg,) = plots.panels({"run": runs}, ["a"], ylabel="loss")
    assert len(strokes(svg, plots.COLORS[0])) == 3


def test_trainings_of_one_name_are_seeds_of_it(tmp_path: Path) -> None:
    arm = evaluation(tmp_path / "a", "m", [True])
    runs = [training(tmp_path / str(seed) / "t", learned=False) for seed in range(2)]
    tags = page_of(tmp_path, arm, trainings=runs)
    assert "The bold line is the mean over seeds" in tags.text
    assert tags.names.count("figure") == 3


def test_a_long_line_is_averaged() -> None:
    (svg,) = plots.panels({"run": [{"a": [1.0, 2.0] * 20_000}]}, ["a"], ylabel="loss")
    assert len(svg) < 40_000


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
    gain, loss = "StepER is right and vanilla_kd wrong", "vanilla_kd is right and StepER wrong"
    assert reasons == [gain, loss, gain, loss, gain]
    first = text[text.index("Shown because") :]
    assert first.index("teacher") < first.index("steper_uniform")
