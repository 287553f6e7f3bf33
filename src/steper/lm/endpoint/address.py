"""Where a model is, and how it is asked; a login in an address is kept out of sight.

>>> Endpoint("llama", ("http://localhost:8000/v1",)).api
'auto'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from steper.errors import SteperError

Api = Literal["auto", "chat", "chat-prefix", "completions"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind one or several OpenAI-compatible servers.

    Attributes:
        model: its name there.
        base_urls: each server's address, usually ending in ``/v1``.
        api: the form of asking; ``auto`` finds out.
        api_key_env: the environment variable that holds the key; local servers need none.
        timeout_s: of one attempt.
        retries: further attempts after the first.
        concurrency: upper bound of calls under way.
        backoff_s: unit of all waits: the first retry comes within one unit, the last within 120.
    """

    model: str
    base_urls: tuple[str, ...] = field(repr=False)  # a login may stand in them
    api: Api = "auto"
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    retries: int = 8
    concurrency: int = 64
    backoff_s: float = 0.5


def split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """An address without its login, and the login, which so appears in no message and no log.

    Raises:
        SteperError: if it is no address of a server.

    >>> split_login("http://me:secret@localhost:8000/v1")
    ('http://localhost:8000/v1', ('me', 'secret'))
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise SteperError(
            "is not the address of a server.",
            where=f"--base-url {url.rpartition('@')[2].partition('?')[0]}",
            fix="It looks like http://localhost:8000/v1.",
        )
    name = f"[{host}]" if ":" in host else host
    place = name if port is None else f"{name}:{port}"
    plain = urlunsplit((parts.scheme, place, parts.path, "", ""))
    if parts.username is None and parts.password is None:
        return plain, None
    return plain, (unquote(parts.username or ""), unquote(parts.password or ""))
