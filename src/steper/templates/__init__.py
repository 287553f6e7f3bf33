r"""Prompt wordings as TOML files; a user's own file has the same keys, and may name a layout.

>>> load_template("ircot").passage
'Passage: {title}\n{text}'
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import get_args

from steper.errors import SteperError
from steper.prompts import Template
from steper.types import PromptLayout

SHIPPED = ("ircot", "world")
LAYOUTS: tuple[PromptLayout, ...] = get_args(PromptLayout)


def load_template(name: str) -> Template:
    """A shipped wording by name, or a user's TOML file by path.

    Raises:
        SteperError: if there is none, or its keys or placeholders are not the expected ones.
    """
    try:
        data = tomllib.loads(_text(name))
    except tomllib.TOMLDecodeError as error:
        raise SteperError(f"not TOML: {error}.", where=name) from None
    layout = data.pop("layout", "grouped")
    if layout not in LAYOUTS:
        raise SteperError(
            f"layout: is {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}.",
            where=name,
            fix="Leave it out for 'grouped'.",
        )
    keys = {"instruction", "passage"}
    if set(data) != keys or not all(isinstance(value, str) for value in data.values()):
        raise SteperError(
            f"holds {sorted(data)}, expected the strings {sorted(keys)} and perhaps 'layout'.",
            where=name,
            fix="See docs/formats.md for an example.",
        )
    passage = data["passage"].strip()
    _check_placeholders(passage, name)
    return Template(data["instruction"].strip(), passage, layout)


def _text(name: str) -> str:
    """The TOML text of a wording."""
    if name in SHIPPED:
        return (resources.files("steper.templates") / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SteperError(
            f"no such prompt wording: {error}.",
            where=f"prompt {name!r}",
            fix=f"Give one of {', '.join(SHIPPED)}, or the path of a TOML file.",
        ) from None


def _check_placeholders(passage: str, name: str) -> None:
    """Raise unless a passage can be shown with this wording, its text included."""
    try:
        shown = passage.format(title="", text="{text}")
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise SteperError(
            f"passage: {error} is not a placeholder.",
            where=name,
            fix="Use {title} and {text}; write {{ and }} for braces.",
        ) from None
    if "{text}" not in shown:
        raise SteperError(
            "passage: leaves the passage's text out.",
            where=name,
            fix="Put {text} where it belongs.",
        )
