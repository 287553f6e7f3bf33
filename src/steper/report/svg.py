"""Matplotlib figures as inline SVG: readable in light and dark, and without color.

Text and axes take the page's color (``currentColor``), the ground is the page's own. What stands
for one thing, an arm or a task, has one number in every figure, and with it one look.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's text color until the figure is finished."""

COLORS = ("#4a80b8", "#d0566a", "#2b9348", "#a68d1f", "#2f93b3", "#bb4488")
"""Each at least 3 : 1 against the page, light and dark."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "--", "xxx", "\\\\\\", "++")

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


# ---- looks -----------------------------------------------------------------------------------


def fill(number: int) -> dict[str, Any]:
    """A bar's color and hatch; the pair is different for the first 36 numbers."""
    turn, color = divmod(number, len(COLORS))
    return {"color": COLORS[color], "hatch": HATCHES[(color + turn) % len(HATCHES)]}


def pen(number: int) -> dict[str, Any]:
    """A line's color and dash."""
    return {
        "linestyle": DASHES[number % len(DASHES)],
        "color": COLORS[number % len(COLORS)],
        "linewidth": 1.6,
    }


def mark(number: int) -> dict[str, Any]:
    """A point's shape, full or hollow, and color; different without color for 16 numbers."""
    hollow = number // len(MARKERS) % 2
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "fillstyle": "none" if hollow else "full",
        "color": COLORS[number % len(COLORS)],
        "markersize": 6.5,
    }


# ---- figures ----------------------------------------------------------------------------------


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    """A figure of this many inches, and its axes, drawn in the page's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def short(text: str, most: int) -> str:
    """A label that fits, with both its ends: those of a grid differ in the last."""
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"
    # Matplotlib 3.9 leaves a label that starts with "_" out of a legend.
    return f"\u200b{text}" if text.startswith("_") else text


def to_svg(figure: Figure, title: str) -> str:
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
