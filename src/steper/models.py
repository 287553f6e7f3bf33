"""Find the language model a command names, and the setting a student folder carries.

One place chooses implementations: ``annotated``, ``world``, a student folder, or any causal
language model that ``transformers`` can load.
"""

from __future__ import annotations

from pathlib import Path

from steper.errors import SteperError
from steper.lm.annotated import AnnotatedTeacher
from steper.protocols import LM
from steper.setting import Setting
from steper.store import from_json, write_json
from steper.templates import load_template
from steper.world.teacher import WorldTeacher

RUN_SETTING = "setting.json"
"""Name of the setting in a run folder."""

STUDENT_SETTING = "steper.json"
"""Name of the setting in a student folder."""

BASE_READER = Path(__file__).parent / "world" / "base_reader"


def build_lm(
    name: str, *, device: str, max_tokens: int = 128, error_rate: float = 0.05, seed: int = 0
) -> LM:
    """The language model of that name.

    Args:
        name: ``annotated``, ``world``, ``base-reader``, a model folder or a hub id.
        device: where a neural model runs.
        max_tokens: most tokens of one sentence it writes.
        error_rate: how often the world teacher misreads.
        seed: of the world teacher's errors.
    """
    match name:
        case "annotated":
            return AnnotatedTeacher()
        case "world":
            return WorldTeacher(error_rate=error_rate, seed=seed)
        case _:
            # torch takes seconds to import; the commands that need no model stay fast.
            from steper.lm.local import LocalLM

            return LocalLM(model_path(name), device=device, max_tokens=max_tokens)


def model_path(name: str) -> str:
    """What ``transformers`` should load for a name."""
    return str(BASE_READER) if name == "base-reader" else name


def default_setting() -> Setting:
    """How a model that carries no setting of its own is asked: the paper's K = 4 and S = 5."""
    return Setting("ircot", load_template("ircot"), k=4, max_steps=5)


def saved_setting(name: str) -> Setting | None:
    """The setting a student folder carries, ``None`` for any other model.

    Raises:
        SteperError: if the folder's ``steper.json`` is malformed.
    """
    path = Path(name) / STUDENT_SETTING
    return read_setting(path) if path.is_file() else None


def read_setting(path: Path) -> Setting:
    """Read a setting file strictly."""
    try:
        return from_json(Setting, path.read_bytes(), where=str(path))
    except OSError as error:
        raise SteperError(f"cannot be read: {error.strerror}.", where=str(path)) from None


def write_setting(path: Path, setting: Setting) -> None:
    """Write a setting file atomically."""
    write_json(path, setting.record())
