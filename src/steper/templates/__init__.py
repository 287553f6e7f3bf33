r"""Prompt wordings as TOML files; a user's own file has the same keys.

A wording is named after its strategy (``ircot``), in another language with that behind it
(``ircot-ko``). Its keys are those of ``steper.prompts.Template``; worked examples are tables:

    [[examples]]
    question = "Who directed the film that Silver Harbor is based on?"
    steps = [
      { passages = [{ title = "…", text = "…" }], reasoning = "…" },
      { passages = [], reasoning = "So the answer is: …." },
    ]

>>> load_template("ircot").passage
'Passage: {title}\n{text}'
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from steper.errors import SteperError
from steper.prompts import Template, one_line, parse_answer
from steper.types import PromptLayout

LAYOUTS: tuple[PromptLayout, ...] = get_args(PromptLayout)
_TEMPLATE = TypeAdapter(Template)


def shipped() -> list[str]:
    """The names of the wordings that come with the package."""
    files = resources.files("steper.templates").iterdir()
    names = {f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")}
    return sorted(names - {"judge", "abilities"})  # rubrics, not wordings of a run


def load_template(name: str) -> Template:
    """A shipped wording by name, or a user's TOML file by path.

    Raises:
        SteperError: if there is none, or its keys, placeholders or examples are not as expected.
    """
    try:
        data = tomllib.loads(_text(name))
    except tomllib.TOMLDecodeError as error:
        raise SteperError(f"not TOML: {error}.", where=name) from None
    try:
        template = _TEMPLATE.validate_python(_with_ids(data))
    except ValidationError as error:
        raise _malformed(error, name) from None
    _check_placeholders(template.passage, name)
    _check_cues(template, name)
    return template


def _text(name: str) -> str:
    """The TOML text of a wording."""
    if name in shipped():
        return (resources.files("steper.templates") / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SteperError(
            f"no such prompt wording: {error}.",
            where=f"prompt {name!r}",
            fix=f"Give one of {', '.join(shipped())}, or the path of a TOML file.",
        ) from None


def _with_ids(data: dict[str, Any]) -> dict[str, Any]:
    """The file's content; its passages get the ids that a passage has, and texts are trimmed."""
    for example in _tables(data, "examples"):
        for step in _tables(example, "steps"):
            for passage in _tables(step, "passages"):
                passage.setdefault("id", "")
    # A sentence is one line with single spaces, and so must be what is looked for in it.
    tidy: dict[str, Callable[[str], str]] = {
        "instruction": str.strip,
        "passage": str.strip,
        "answer_cue": one_line,
        "search_cue": one_line,
    }
    return {k: tidy[k](v) if k in tidy and isinstance(v, str) else v for k, v in data.items()}


def _tables(record: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The tables in a list; whatever else stands there is for the validation to refuse."""
    found = record.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _malformed(error: ValidationError, name: str) -> SteperError:
    first = error.errors()[0]
    field = ".".join(str(p + 1 if isinstance(p, int) else p) for p in first["loc"])
    messages = {
        "unexpected_keyword_argument": "unknown key.",
        "missing_argument": "is missing.",
        "missing": "is missing.",
    }
    message = messages.get(first["type"]) or f"is {first['input']!r}: {first['msg'].lower()}."
    return SteperError(
        f"{field}: {message}", where=name, fix="docs/strategies.md lists the keys of a wording."
    )


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


def _check_cues(template: Template, name: str) -> None:
    """Raise where an answer or a query could not be told from other sentences."""
    for key in ("answer_cue", "search_cue"):
        if not getattr(template, key):
            raise SteperError(f"{key}: is empty.", where=name, fix="Leave it out for the default.")
    for number, example in enumerate(template.examples, start=1):
        answers = [
            parse_answer(step.reasoning, cue=template.answer_cue) is not None
            for step in example.steps
        ]
        if not answers or not answers[-1] or any(answers[:-1]):
            raise SteperError(
                f"examples.{number}: its last sentence, and no other, must give the answer after "
                f"{template.answer_cue!r}.",
                where=name,
                fix="End the example with such a sentence.",
            )
