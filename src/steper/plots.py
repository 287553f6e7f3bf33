"""Figures of the report as inline SVG: readable in light and dark, and without color.

Text and axes take the page's color (``currentColor``); lines differ by dash, bars by hatch. Every
figure is drawn about as wide as a phone, so that its text is legible there; the page puts several
side by side where there is room.

>>> svg = bars({"teacher": (80.0, 75.0, 85.0)}, title="EM")
>>> svg.startswith("<svg")
True
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK = "#010203"
"""Stands for the page's text color until the figure is finished."""

COLORS = ("#4a80b8", "#d0566a", "#2b9348", "#a68d1f", "#2f93b3", "#bb4488")
"""Each at least 3 : 1 against the page, light and dark."""
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")

WIDTH = 4.6
"""Inches: at 390 CSS pixels of screen, text of 10 points is then about 10 pixels."""

PANEL = (3.1, 2.3)
"""Inches, width and height of one of several small figures."""

POINTS = 240
"""Most points of a line; longer ones are averaged, so that the page stays small."""

Interval = tuple[float, float, float]
"""Value, low, high."""

Lines = Mapping[str, Sequence[float | None]]
"""Values over steps 1, 2, … by label; ``None`` is a gap."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steper",
    "font.family": "sans-serif",
    "font.size": 10,
    # A label is a name from the user's disk, in which "$" is a letter.
    "text.parse_math": False,
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


# ---- bars ------------------------------------------------------------------------------------


def bars(values: Mapping[str, Interval | None], *, title: str) -> str:
    """Horizontal bars with interval whiskers, first on top, in percent; ``None`` is no bar."""
    with _canvas(WIDTH, 0.7 + 0.46 * len(values)) as (figure, axes):
        for place, (label, interval) in enumerate(values.items()):
            # Above its bar, a long label takes no width from the bars.
            axes.text(0.8, place - 0.25, _short(label, 40), va="bottom", fontsize=9)
            if interval is None:
                axes.text(1, place, "unknown", va="center", fontsize=9)
                continue
            value, _, high = interval
            whiskers: Any = {"ecolor": INK, "capsize": 3, "elinewidth": 1}
            axes.barh(
                place, value, xerr=_reach(interval), height=0.44, error_kw=whiskers, **_fill(place)
            )
            axes.text(high + 1.5, place, f"{value:.1f}", va="center")
        axes.set_yticks([])
        axes.set_ylim(len(values) - 0.6, -0.8)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("percent")
        return _svg(figure, title)


def grouped_bars(
    groups: Mapping[str, Sequence[Interval | None]], ticks: Sequence[str], *, title: str
) -> str:
    """One cluster of bars per tick, one bar per group; ``None`` leaves a gap. In percent."""
    with _canvas(WIDTH, 2.5 + 0.22 * math.ceil(len(groups) / 2)) as (figure, axes):
        width = 0.84 / len(groups)
        whiskers: Any = {"ecolor": INK, "capsize": 1.5, "elinewidth": 0.8}
        for number, values in enumerate(groups.values()):
            for tick, interval in enumerate(values):
                if interval is None:
                    continue
                axes.bar(
                    tick - 0.42 + (number + 0.5) * width,
                    interval[0],
                    yerr=_reach(interval),
                    width=0.9 * width,
                    error_kw=whiskers,
                    **_fill(number),
                )
        axes.set_xticks(range(len(ticks)), list(ticks))
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_ylim(0, 105)
        axes.set_ylabel("percent")
        patches = [axes.bar(0, 0, **_fill(number)) for number in range(len(groups))]
        names = [_short(label, 26) for label in groups]
        figure.legend(patches, names, loc="outside lower center", ncols=2, fontsize=9)
        return _svg(figure, title)


def _reach(interval: Interval) -> list[list[float]]:
    value, low, high = interval
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _fill(number: int) -> dict[str, Any]:
    """Color and hatch; the pair is different for the first 36 numbers."""
    turn, color = divmod(number, len(COLORS))
    return {"color": COLORS[color], "hatch": HATCHES[(color + turn) % len(HATCHES)]}


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
        lines = [axes.plot([], [], **_pen(number))[0] for number in range(len(labels))]
        figure.legend(lines, list(labels), loc="center", ncols=len(labels), handlelength=2.6)
        return _svg(figure, title)


def _panel(runs: Sequence[Lines], title: str, axis: _Axis) -> str:
    with _canvas(*PANEL) as (figure, axes):
        for number, name in enumerate(axis.names):
            own = [run[name] for run in runs if name in run]
            for line in own if len(own) > 1 else ():
                _draw(axes, line, _pen(number) | {"linewidth": 0.6, "alpha": 0.4})
            _draw(axes, _mean(own), _pen(number))
        axes.set_title(_short(title, 30), fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(axis.label)
        if axis.log:
            axes.set_yscale("log")
            subs = (1.0,) if axis.high / axis.low > 30 else (1.0, 2.0, 5.0)
            axes.yaxis.set_major_locator(LogLocator(subs=subs))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(axis.low, axis.high)
        return _svg(figure, f"{axis.label}, {title}")


def _pen(number: int) -> dict[str, Any]:
    return {
        "linestyle": DASHES[number % len(DASHES)],
        "color": COLORS[number % len(COLORS)],
        "linewidth": 1.6,
    }


def _mean(lines: Sequence[Sequence[float | None]]) -> list[float | None]:
    """At each step the mean over the runs that have a value there, to the end of the shortest."""
    columns = [_known(column) for column in zip(*lines, strict=False)]
    return [fmean(values) if values else None for values in columns]


def _draw(axes: Any, line: Sequence[float | None], pen: dict[str, Any]) -> None:
    """One line with its gaps; a value between two gaps, which no line shows, is a dot."""
    size = max(1, math.ceil(len(line) / POINTS))
    blocks = [line[start : start + size] for start in range(0, len(line), size)]
    x = [number * size + (len(block) + 1) / 2 for number, block in enumerate(blocks)]
    y = [fmean(known) if (known := _known(block)) else math.nan for block in blocks]
    axes.plot(x, y, **pen)
    padded = [math.nan, *y, math.nan]
    alone = [
        i
        for i in range(len(y))
        if not math.isnan(y[i]) and math.isnan(padded[i]) and math.isnan(padded[i + 2])
    ]
    if alone:
        dots: Any = {"linestyle": "", "marker": "o", "markersize": 2.0, "color": pen["color"]}
        axes.plot([x[i] for i in alone], [y[i] for i in alone], **dots)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# ---- SVG -------------------------------------------------------------------------------------


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _short(text: str, most: int) -> str:
    """A label that fits; matplotlib 3.9 leaves one that starts with "_" out of a legend."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"\u200b{text}" if text.startswith("_") else text


def _svg(figure: Figure, title: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page and has a name."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Matplotlib numbers ids within a figure; several figures on a page must not share them.
    prefix = "f" + hashlib.sha256(title.encode() + svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(<[^<>]* )id="([^"<>]+)"', rf'\1id="{prefix}-\2"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    name = html.escape(title)
    head, _, body = svg.partition(">")
    head = head.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    return f"{head}><title>{name}</title>{body}"
