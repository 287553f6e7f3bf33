"""Find the language model a command names, and the setting a student folder carries.

One place chooses implementations: ``annotated``, ``world``, a student folder, or any causal
language model that ``transformers`` can load.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from steper.accounts import Prices, Purse
from steper.config import ModelOptions
from steper.errors import SteperError
from steper.lm.annotated import AnnotatedTeacher
from steper.protocols import LM, Sampling
from steper.setting import Setting
from steper.store import from_json, write_json
from steper.templates import load_template
from steper.world.teacher import WorldTeacher

if TYPE_CHECKING:
    from steper.lm.endpoint import EndpointLM

COMPLETIONS = "completions.sqlite"
"""Name of the file of completions."""

API = "api.txt"
"""Name of the file in a run folder that keeps how its server is asked."""

RUN_SETTING = "setting.json"
"""Name of the setting in a run folder."""

STUDENT_SETTING = "steper.json"
"""Name of the setting in a student folder."""

_WORLD = Path(__file__).parent / "world"
BASE_READERS = {
    "base-reader": _WORLD / "base_reader",
    "base-reader-small": _WORLD / "base_reader_small",
}
"""The offline world's untaught models, by name."""


def build_lm(
    name: str,
    options: ModelOptions | None = None,
    *,
    error_rate: float = 0.05,
    seed: int = 0,
    purse: Purse | None = None,
    cache: Path | None = None,
    pin: Path | None = None,
) -> LM:
    """The language model of that name.

    Args:
        name: ``annotated``, ``world``, ``base-reader``, a model folder, a hub id, or where the
            options name servers, a model there.
        options: how it is reached and how it draws its words; by default greedily, in process.
        error_rate: how often the world teacher misreads.
        seed: of draws, and of the world teacher's errors.
        purse: what calls to a server are paid from.
        pin: file that keeps the form of asking a server; see ``EndpointLM``.
        cache: where they are kept, if the options do not say; by default in the user's cache.
    """
    options = options or ModelOptions()
    sampling = Sampling(options.temperature, options.top_p, options.max_tokens, seed)
    if options.base_url:
        return _endpoint(name, options, sampling, purse=purse, cache=cache, pin=pin)
    match name:
        case "annotated":
            return AnnotatedTeacher()
        case "world":
            return WorldTeacher(error_rate=error_rate, seed=seed)
    # torch takes seconds to import; the commands that need no model stay fast.
    match options.backend:
        case "transformers":
            from steper.lm.local import LocalLM

            return LocalLM(model_path(name), device=options.device, sampling=sampling)
        case "paged":
            try:
                from steper.lm.paged import PagedLM
            except ImportError as error:
                raise SteperError(
                    f"this version of transformers cannot do that: {error}.",
                    where="--backend paged",
                    fix="pip install -U transformers",
                ) from None

            return PagedLM(model_path(name), device=options.device, sampling=sampling)
        case "vllm":
            from steper.lm.vllm import VllmLM

            return VllmLM(model_path(name), sampling=sampling)


def _endpoint(
    name: str,
    options: ModelOptions,
    sampling: Sampling,
    *,
    purse: Purse | None,
    cache: Path | None,
    pin: Path | None,
) -> EndpointLM:
    from steper.lm.calls import CallCache
    from steper.lm.endpoint import Endpoint, EndpointLM

    if options.budget is not None and not (options.price_prompt or options.price_completion):
        raise SteperError(
            "is never reached: nothing costs anything without prices.",
            where="--budget",
            fix="Give --price-prompt and --price-completion, per million tokens.",
        )
    endpoint = Endpoint(
        model=name,
        base_urls=options.base_url,
        api=options.api,
        api_key_env=options.api_key_env,
        timeout_s=options.timeout_s,
        retries=options.retries,
        concurrency=options.concurrency,
    )
    path = cache_path(options.cache, cache)
    cached = options.price_prompt if options.price_cached is None else options.price_cached
    return EndpointLM(
        endpoint,
        sampling,
        cache=CallCache(path) if path else None,
        prices=Prices(options.price_prompt, cached, options.price_completion),
        purse=purse,
        pin=pin,
    )


@contextmanager
def telling(lm: LM, say: Callable[[str], None]) -> Iterator[None]:
    """Have a model tell how it went, however it ends: calls made again, what it could not do."""
    try:
        yield
    finally:
        remarks: Callable[[], list[str]] = getattr(lm, "remarks", list)
        for remark in remarks():
            say(remark)


def cache_path(given: str, default: Path | None = None) -> Path | None:
    """The file of completions: the one given, else ``default``, else in the user's cache."""
    if given:
        return None if given == "none" else Path(given)
    folder = os.environ.get("STEPER_CACHE")
    users = Path(folder) if folder else Path.home() / ".cache" / "steper"
    return default or users / COMPLETIONS


def model_path(name: str) -> str:
    """What ``transformers`` should load for a name."""
    return str(BASE_READERS.get(name, name))


def parameter_count(name: str) -> int | None:
    """Parameters of a model in a folder, from the headers of its files; ``None`` if unknown."""
    files = sorted(Path(model_path(name)).glob("*.safetensors"))
    if not files:
        return None
    from safetensors import safe_open

    total = 0
    for file in files:
        with safe_open(file, framework="np") as tensors:
            names = list(tensors.keys())
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def default_setting() -> Setting:
    """How a model that carries no setting of its own is asked: the paper's K = 4 and S = 5."""
    return Setting("ircot", load_template("ircot"), k=4, max_steps=5)


def taught_setting(name: str, given: Path | None) -> Setting | None:
    """The setting a model was taught in: that of the file given, else of the student folder."""
    return read_setting(given) if given else saved_setting(name)


def saved_setting(name: str) -> Setting | None:
    """The setting a student folder carries, ``None`` for any other model.

    Raises:
        SteperError: if the folder's ``steper.json`` is malformed.
    """
    path = Path(name) / STUDENT_SETTING
    return read_setting(path) if path.is_file() else None


def read_setting(path: Path) -> Setting:
    """Read a setting file strictly.

    Raises:
        SteperError: if it is no setting.
    """
    fix = f"Give a run's {RUN_SETTING} or a student's {STUDENT_SETTING}."
    try:
        return from_json(Setting, path.read_bytes(), where=str(path), fix=fix)
    except OSError as error:
        raise SteperError(f"cannot be read: {error.strerror}.", where=str(path), fix=fix) from None


def write_setting(path: Path, setting: Setting) -> None:
    """Write a setting file atomically."""
    write_json(path, setting.record())
