"""Figures of the report as inline SVG: readable in light and dark, and without color.

Text and axes take the page's color (``currentColor``); lines differ by dash, bars by hatch.

>>> svg = bars({"teacher": (80.0, 75.0, 85.0)}, title="EM")
>>> svg.startswith("<svg")
True
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's text color until the figure is finished."""

COLORS = ("#4477aa", "#cc5566", "#228833", "#b09a2f", "#3a9fbf", "#aa3377")
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")

Interval = tuple[float, float, float]
"""Value, low, high."""

Lines = Mapping[str, Sequence[float | None]]
"""Values over steps 1, 2, … by label."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steper",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": INK,
    "hatch.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def bars(values: Mapping[str, Interval], *, title: str) -> str:
    """Horizontal bars with interval whiskers, first on top, in percent."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(7.0, 0.6 + 0.42 * len(values))
        for place, (value, low, high) in enumerate(values.values()):
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.barh(
                place,
                value,
                xerr=error,
                height=0.62,
                color=COLORS[place % len(COLORS)],
                hatch=HATCHES[place % len(HATCHES)],
                error_kw={"ecolor": INK, "capsize": 3, "elinewidth": 1},
            )
            axes.text(high + 1.5, place, f"{value:.1f}", va="center")
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("percent")
        return _svg(figure, title)


def grouped_bars(groups: Mapping[str, Sequence[Interval | None]], ticks: Sequence[str]) -> str:
    """One cluster of bars per tick, one bar per group; ``None`` leaves a gap. In percent."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(7.0, 3.0)
        width = 0.8 / len(groups)
        for number, (label, values) in enumerate(groups.items()):
            for tick, interval in enumerate(values):
                if interval is None:
                    continue
                value, low, high = interval
                axes.bar(
                    tick - 0.4 + (number + 0.5) * width,
                    value,
                    yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                    width=0.92 * width,
                    color=COLORS[number % len(COLORS)],
                    hatch=HATCHES[number % len(HATCHES)],
                    label=label if tick == 0 else None,
                    error_kw={"ecolor": INK, "capsize": 2, "elinewidth": 0.8},
                )
        axes.set_xticks(range(len(ticks)), list(ticks))
        axes.set_ylim(0, 105)
        axes.set_ylabel("percent")
        _legend(axes, len(groups))
        return _svg(figure, "accuracy of first, middle and last step")


def curves(panels: Mapping[str, Lines], *, xlabel: str, ylabel: str) -> str:
    """Small multiples of lines over steps 1, 2, …; ``None`` is a gap. One y-axis for all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.6), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        # A label looks the same in every panel, also in one that lacks some.
        labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
        for axes, (name, lines) in zip(grid[0], panels.items(), strict=True):
            for label, values in lines.items():
                number = labels.index(label)
                steps = [step for step, value in enumerate(values, 1) if value is not None]
                axes.plot(
                    steps,
                    [value for value in values if value is not None],
                    DASHES[number % len(DASHES)],
                    color=COLORS[number % len(COLORS)],
                    label=label,
                    linewidth=1.4,
                )
            axes.set_title(name, fontsize=10)
            axes.set_xlabel(xlabel)
        grid[0][0].set_ylabel(ylabel)
        handles, shown = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, shown, loc="outside lower center", ncols=len(shown))
        return _svg(figure, ylabel)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Any, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, 3))


def _svg(figure: Figure, title: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page and has a name."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Matplotlib numbers ids within a figure; several figures on a page must not share them.
    prefix = re.sub(r"\W", "", title)
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
