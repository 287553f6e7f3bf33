"""Figures: what is known is drawn, what is not is a gap, and no color is needed to read them."""

from __future__ import annotations

import re

import pytest

from steper.report import plots, svg
from steper.types import TASKS


def strokes(figure: str, color: str) -> list[str]:
    """The path data of lines drawn in a color."""
    return re.findall(rf'<path d="([^"]+)"[^>]*stroke: {color}', figure)


@pytest.mark.parametrize(("line", "pieces"), [([1.0] * 5, 1), ([1.0, 2.0, None, 1.0, 2.0], 2)])
def test_a_missing_value_is_a_gap(line: list[float | None], pieces: int) -> None:
    (panel,) = plots.panels({"run": [{"a": line}]}, ["a"], ylabel="loss", log=True)
    (path,) = strokes(panel, svg.COLORS[0])
    assert path.count("M") == pieces


def test_a_value_between_two_gaps_is_a_dot() -> None:
    def drawn(line: list[float | None]) -> int:
        (panel,) = plots.panels({"run": [{"a": line}]}, ["a"], ylabel="loss")
        return len(re.findall(rf"<use [^>]*fill: {svg.COLORS[0]}", panel))

    assert drawn([1.0, 1.0, None, 1.0, None, 1.0, 1.0]) == 1
    assert drawn([1.0, 1.0, None, 1.0, 1.0]) == 0


def test_a_task_looks_the_same_in_every_panel_and_in_the_key() -> None:
    """Vanilla-KD, the first panel, has the last task only."""
    names = [str(task) for task in TASKS]
    groups = {"vanilla": [{names[2]: [1.0, 2.0]}], "steper": [{n: [1.0, 2.0] for n in names}]}
    vanilla, steper = plots.panels(groups, names, ylabel="loss")
    assert [len(strokes(vanilla, color)) for color in svg.COLORS[:3]] == [0, 0, 1]
    assert [len(strokes(steper, color)) for color in svg.COLORS[:3]] == [1, 1, 1]
    key = plots.legend(names, title="key")
    drawn = re.findall(r"stroke: (#\w+)|>(\w+)</text>", key)
    assert [color or text for color, text in drawn] == [
        word for pair in zip(svg.COLORS, names, strict=False) for word in pair
    ]


def test_each_seed_of_a_training_is_drawn_and_their_mean() -> None:
    runs = [{"a": [1.0, 2.0]}, {"a": [3.0, 4.0]}]
    (panel,) = plots.panels({"run": runs}, ["a"], ylabel="loss")
    assert len(strokes(panel, svg.COLORS[0])) == 3


def test_a_long_line_is_averaged() -> None:
    (panel,) = plots.panels({"run": [{"a": [1.0, 2.0] * 20_000}]}, ["a"], ylabel="loss")
    assert len(panel) < 40_000


def test_bars_take_a_value_that_is_unknown() -> None:
    figure = plots.bars({"a": (50.0, 40.0, 60.0), "b": None}, title="x")
    assert re.findall(r">(a|b|50\.0|unknown)</text>", figure) == ["a", "50.0", "b", "unknown"]


def test_every_hatch_is_small() -> None:
    """Dots would take 150 kB for each figure."""
    bars = {str(number): (50.0, 40.0, 60.0) for number in range(len(svg.HATCHES))}
    assert len(plots.bars(bars, title="x")) < 40_000


def test_sixteen_arms_look_different_without_color() -> None:
    looks = [svg.mark(number) for number in range(16)]
    assert len({(look["marker"], look["fillstyle"]) for look in looks}) == 16


def test_a_key_names_what_is_known_with_both_ends_of_long_labels() -> None:
    labels = ["_hidden", "unknown", "c" * 40 + " lr=0.01", "c" * 40 + " lr=0.02"]
    points = {label: (n + 1.0, (5.0, 4.0, 6.0)) for n, label in enumerate(labels)} | {
        "unknown": None
    }
    figure = plots.scatter(points, xlabel="size", title="x")
    names = re.findall(r">\u200b?(_hidden|unknown|c+[^<]*)</text>", figure)
    assert names == ["_hidden", *labels[2:]]
    long = {"c" * 60 + end: [1.0] for end in ("1", "2")} | {"unknown": []}
    names = re.findall(r">(unknown|c+…c+\d)</text>", plots.lines(long, title="x"))
    assert [name[-1] for name in names] == ["1", "2"]


def test_points_of_one_amount_stand_side_by_side() -> None:
    interval = (50.0, 40.0, 60.0)
    points = {"a": (1e6, interval), "b": (1e6, interval), "c": (1e9, interval)}
    figure = plots.scatter(points, xlabel="size", title="x")
    places = {
        re.search(rf'<use [^>]*x="([\d.]+)"[^>]*fill: {color}', figure)[1]  # type: ignore[index]
        for color in svg.COLORS[:2]
    }
    assert len(places) == 2
