"""What the page is made of besides prose: figures and tables, ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cell = tuple[str, ...]
"""A value, then lines of small print."""


@dataclass(frozen=True)
class Figure:
    """Drawings with what they show.

    Attributes:
        svgs: side by side where there is room.
        caption: plain text.
        small: whether each is as small as a panel.
        key: of all drawings, or empty.
    """

    svgs: Sequence[str]
    caption: str
    small: bool = False
    key: str = ""


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways in itself.

    Attributes:
        name: what it holds, for who cannot see it.
        heads: of the columns, without the first, which names the rows.
        rows: name and cells.
        note: plain text below the table.
    """

    name: str
    heads: Sequence[Cell]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


def count(number: int, noun: str) -> str:
    """A number with its noun, as "1 seed" or "3 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
