r"""Prompt wordings as TOML files; a user's own file has the same two keys.

>>> load_template("ircot").passage
'Passage: {title}\n{text}'
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from steper.errors import SteperError
from steper.prompts import Template

SHIPPED = ("ircot", "world")


def load_template(name: str) -> Template:
    """A shipped wording by name, or a user's TOML file by path.

    Raises:
        SteperError: if there is none, or its keys or placeholders are not the expected ones.
    """
    if name in SHIPPED:
        text = (resources.files("steper.templates") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SteperError(
                f"no such prompt wording: {error}.",
                where=f"prompt {name!r}",
                fix=f"Give one of {', '.join(SHIPPED)}, or the path of a TOML file.",
            ) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SteperError(f"not TOML: {error}.", where=name) from None
    keys = {"instruction", "passage"}
    if set(data) != keys or not all(isinstance(value, str) for value in data.values()):
        raise SteperError(
            f"holds {sorted(data)}, expected the strings {sorted(keys)}.",
            where=name,
            fix="See docs/formats.md for an example.",
        )
    template = Template(instruction=data["instruction"].strip(), passage=data["passage"].strip())
    try:
        shown = template.passage.format(title="", text="{text}")
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
    return template
