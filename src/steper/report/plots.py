"""Figures of the report: bars, points, and lines, each as an ``<svg>`` element.

Every figure is drawn about as wide as a phone, so that its text is legible there; the page puts
several side by side where there is room.

>>> svg = bars({"teacher": (80.0, 75.0, 85.0)}, title="EM")
>>> svg.startswith("<svg")
True
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from steper.report.svg import INK, STYLE, canvas, fill, mark, pen, short, to_svg

WIDTH = 4.6
"""Inches: at 390 CSS pixels of screen, text of 10 points is then about 10 pixels."""

WHISKERS: Any = {"ecolor": INK, "capsize": 3, "elinewidth": 1}

HALF = 26
"""Characters of a label that fit half a figure's width."""

PANEL = (3.1, 2.3)
"""Inches, width and height of one of several small figures."""

POINTS = 240
"""Most points of a line; longer ones are averaged, so that the page stays small."""

Interval = tuple[float, float, float]
"""Value, low, high."""

Lines = Mapping[str, Sequence[float | None]]
"""Values over steps 1, 2, … by label; ``None`` is a gap."""

# ---- arms ------------------------------------------------------------------------------------


def bars(values: Mapping[str, Interval | None], *, title: str, panel: str = "") -> str:
    """Horizontal bars with interval whiskers, first on top, in percent; ``None`` is no bar.

    Args:
        values: by label.
        title: what is drawn.
        panel: heading of one of several small figures.
    """
    width = PANEL[0] if panel else WIDTH
    with canvas(width, 0.7 + 0.46 * len(values)) as (figure, axes):
        for place, (label, interval) in enumerate(values.items()):
            # Above its bar, a long label takes no width from the bars.
            axes.text(0.8, place - 0.25, short(label, int(11 * width)), va="bottom", fontsize=9)
            if interval is None:
                axes.text(1, place, "unknown", va="center", fontsize=9)
                continue
            value, _, high = interval
            axes.barh(
                place, value, xerr=_reach(interval), height=0.44, error_kw=WHISKERS, **fill(place)
            )
            axes.text(high + 1.5, place, f"{value:.1f}", va="center")
        axes.set_yticks([])
        axes.set_ylim(len(values) - 0.6, -0.8)
        axes.set_xlim(0, 100 + 55 / width)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("percent")
        axes.set_title(panel, fontsize=10)
        return to_svg(figure, title)


def scatter(points: Mapping[str, tuple[float, Interval] | None], *, xlabel: str, title: str) -> str:
    """Percent with whiskers against positive amounts, not all equal, on a logarithmic axis.

    Points of equal amounts, which would hide each other, stand side by side.
    """
    known = {number: point for number, point in enumerate(points.values()) if point}
    amounts = [amount for amount, _ in known.values()]
    ratio = max(amounts) / min(amounts)
    times, seen = Counter(amounts), Counter[float]()
    with canvas(WIDTH, 2.9 + _key_height(points)) as (figure, axes):
        drawn = []
        for number, (amount, interval) in known.items():
            place = seen[amount] - (times[amount] - 1) / 2
            seen[amount] += 1
            x = amount * ratio ** (place * min(0.04, 0.3 / times[amount]))
            whiskers = {"ecolor": INK, "elinewidth": 0.8, "capsize": 2, "linestyle": ""}
            y = interval[0]
            drawn += axes.errorbar(x, y, yerr=_reach(interval), **whiskers, **mark(number))[:1]
        axes.set_xscale("log")
        axes.margins(x=0.12)
        _log_ticks(axes.xaxis, ratio)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("exact match, percent")
        _key(figure, drawn, [label for label, point in points.items() if point])
        return to_svg(figure, title)


def lines(values: Mapping[str, Sequence[float]], *, title: str, first: int = 0) -> str:
    """One line an arm over steps 1, 2, …, in percent.

    Args:
        values: by label; nothing where it is unknown.
        title: what is drawn.
        first: the number of the first label, from which its look comes.
    """
    with canvas(WIDTH, 2.9 + _key_height(values)) as (figure, axes):
        drawn = [
            axes.plot(range(1, len(line) + 1), line, **pen(number) | mark(number))[0]
            for number, line in enumerate(values.values(), start=first)
            if line
        ]
        axes.set_ylim(0, 105)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel("percent")
        _key(figure, drawn, [label for label, line in values.items() if line])
        return to_svg(figure, title)


def _reach(interval: Interval) -> list[list[float]]:
    value, low, high = interval
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _columns(labels: Iterable[str]) -> int:
    """Columns of a key: long labels, as those of a grid, differ in their ends."""
    return 1 if max(map(len, labels)) > HALF else 2


def _key_height(labels: Mapping[str, Any]) -> float:
    return 0.1 + 0.19 * math.ceil(len(labels) / _columns(labels))


def _key(figure: Figure, drawn: Sequence[Any], labels: Sequence[str]) -> None:
    columns = _columns(labels)
    names = [short(label, 2 * HALF // columns) for label in labels]
    where: Any = {"loc": "outside lower center", "ncols": columns}
    figure.legend(drawn, names, fontsize=9, labelspacing=0.3, **where)


def _log_ticks(axis: Any, ratio: float) -> None:
    """Plain numbers on a logarithmic axis whose ends have this ratio."""
    subs = (1.0,) if ratio > 30 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs) if ratio > 5 else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    """A tick's number, as 0.5, 200 or 1.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


# ---- curves ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """What the panels of one row have in common."""

    label: str
    low: float
    high: float
    log: bool
    names: Sequence[str]


def panels(
    groups: Mapping[str, Sequence[Lines]], names: Sequence[str], *, ylabel: str, log: bool = False
) -> list[str]:
    """One small figure per group, all with the same y-axis; none where there are no values.

    Args:
        groups: by title, the lines of each run (seed). The mean over runs is drawn bold, and each
            run thin where there are several.
        names: the lines' labels, in the order of the ``legend``. A label then looks the same in
            every panel, also in one that lacks some.
        ylabel: what the values are, with their unit.
        log: whether the y-axis is logarithmic; every value must then be positive.
    """
    lines = [line for runs in groups.values() for run in runs for line in run.values()]
    values = [value for line in lines for value in _known(line)]
    if not values:
        return []
    low, high = min(values), max(values)
    low, high = (0.8 * low, 1.25 * high) if log else (min(0.0, low), 1.05 * high or 1.0)
    axis = _Axis(ylabel, low, high, log, names)
    return [_panel(runs, title, axis) for title, runs in groups.items()]


def legend(labels: Sequence[str], *, title: str) -> str:
    """The key of ``panels``, as a figure of its own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.32))
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        lines = [axes.plot([], [], **pen(number))[0] for number in range(len(labels))]
        figure.legend(lines, list(labels), loc="center", ncols=len(labels), handlelength=2.6)
        return to_svg(figure, title)


def _panel(runs: Sequence[Lines], title: str, axis: _Axis) -> str:
    with canvas(*PANEL) as (figure, axes):
        for number, name in enumerate(axis.names):
            own = [run[name] for run in runs if name in run]
            for line in own if len(own) > 1 else ():
                _draw(axes, line, pen(number) | {"linewidth": 0.6, "alpha": 0.4})
            _draw(axes, _mean(own), pen(number))
        axes.set_title(short(title, 30), fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(axis.label)
        if axis.log:
            axes.set_yscale("log")
            _log_ticks(axes.yaxis, axis.high / axis.low)
        axes.set_ylim(axis.low, axis.high)
        return to_svg(figure, f"{axis.label}, {title}")


def _mean(lines: Sequence[Sequence[float | None]]) -> list[float | None]:
    """At each step the mean over the runs that have a value there, to the end of the shortest."""
    columns = [_known(column) for column in zip(*lines, strict=False)]
    return [fmean(values) if values else None for values in columns]


def _draw(axes: Any, line: Sequence[float | None], look: dict[str, Any]) -> None:
    """One line with its gaps; a value between two gaps, which no line shows, is a dot."""
    size = max(1, math.ceil(len(line) / POINTS))
    blocks = [line[start : start + size] for start in range(0, len(line), size)]
    x = [number * size + (len(block) + 1) / 2 for number, block in enumerate(blocks)]
    y = [fmean(known) if (known := _known(block)) else math.nan for block in blocks]
    axes.plot(x, y, **look)
    padded = [math.nan, *y, math.nan]
    alone = [
        i
        for i in range(len(y))
        if not math.isnan(y[i]) and math.isnan(padded[i]) and math.isnan(padded[i + 2])
    ]
    if alone:
        dots: Any = {"linestyle": "", "marker": "o", "markersize": 2.0, "color": look["color"]}
        axes.plot([x[i] for i in alone], [y[i] for i in alone], **dots)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
