"""An index that another process serves over HTTP, and the records that go over the wire.

Many workers share one index: it is in memory once, and what they ask at the same time is searched
together. The other side is ``steper.retrieval.server``.

>>> index = RemoteIndex("http://127.0.0.1:8765")  # doctest: +SKIP
>>> index.search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar
from urllib.parse import unquote

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError
from urllib3.util import make_headers, parse_url

from steper.errors import SteperError
from steper.prose import whole
from steper.retrieval.info import IndexInfo, check_request
from steper.store import from_json
from steper.types import STRICT, Passage

T = TypeVar("T")

# ---- what goes over the wire -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes.

    Attributes:
        max_waiting: queries taken in and not yet answered; those beyond are asked to come later.
        max_queries: queries of one request.
        max_query_chars: characters of one query.
        max_k: passages for one query.
        max_body_bytes: bytes of one request. JSON may need six for a character.

    Raises:
        SteperError: if a limit is below 1, or a request as large as allowed could never get in.
    """

    __pydantic_config__ = STRICT

    max_waiting: int = 2048
    max_queries: int = 256
    max_query_chars: int = 1 << 20
    max_k: int = 100
    max_body_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise SteperError(f"is {value}, but must be at least 1.", where=name)
        if self.max_queries > self.max_waiting:
            raise SteperError(
                f"is {self.max_waiting}, less than the {self.max_queries} queries of one request.",
                where="max_waiting",
                fix="Raise it, or lower max_queries.",
            )


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Asked:
    """The body of a ``POST /search``."""

    __pydantic_config__ = STRICT

    queries: list[str]
    k: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What it is answered.

    Attributes:
        results: the passages of each query, best first.
        index: fingerprint of the index that was searched.
    """

    __pydantic_config__ = STRICT

    results: list[list[Passage]]
    index: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What is answered to a request that cannot be met."""

    __pydantic_config__ = STRICT

    error: str


# ---- the client ------------------------------------------------------------------------------

_SECONDS_TO_CONNECT = 10.0
_LONGEST_WAIT_S = 60
_RETRIES_ON_OPENING = 3
"""A wrong address should not take minutes to be named."""


class RemoteIndex:
    """A served index; fits ``steper.retrieval.info.Index``. Safe to use from several threads.

    A server that is busy or away is asked again: eight retries take about a minute and a half.

    Args:
        url: as ``steper index serve`` printed it; a path and a login may be part of it.
        timeout_s: how long the server may be silent.
        retries: further attempts after the first.

    Attributes:
        url: the address, without login.
        info: what the index is made of, as it was on opening.
        limits: what the server takes; larger batches are split.

    Raises:
        SteperError: if there is no index server at that address.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0, retries: int = 8) -> None:
        self.url, login = _address(url)
        headers = {"content-type": "application/json"}
        if login:
            headers |= make_headers(basic_auth=login)
        connect_s = min(_SECONDS_TO_CONNECT, timeout_s)
        self._timeout_s = timeout_s
        self._pool = urllib3.PoolManager(
            maxsize=64,  # connections kept; more threads than these may ask all the same
            headers=headers,
            timeout=urllib3.Timeout(connect=connect_s, read=timeout_s),
        )
        self._patience = _Patience(
            total=min(retries, _RETRIES_ON_OPENING),
            allowed_methods=None,  # of any method: a search changes nothing
            status_forcelist=(502, 503, 504),
            raise_on_status=False,
            backoff_factor=0.5,
            backoff_jitter=0.5,
            backoff_max=30,
        )
        self.info = self._get("/info", IndexInfo)
        self.limits = self._get("/limits", Limits)
        self._fingerprint = self.info.fingerprint
        self._patience = self._patience.new(total=retries)

    def __len__(self) -> int:
        return self.info.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages, best first; ``[]`` where none match.

        Raises:
            SteperError: if the server stays away, refuses, or serves another index by now.
        """
        check_request(queries, k)
        found: list[list[Passage]] = []
        for part in self._parts(queries):
            body = b'{"k":%d,"queries":[%b]}' % (k, b",".join(part))
            answer = self._read(Answer, self._ask("POST", "/search", body))
            if answer.index != self._fingerprint:
                raise SteperError(
                    "another index is served there now, and what it finds would be mixed with "
                    "what was found before.",
                    where=self.url,
                    fix="Serve the former index again, or start anew with another --out.",
                )
            if len(answer.results) != len(part):
                raise SteperError(
                    f"answered {len(answer.results)} of {len(part)} queries.", where=self.url
                )
            found += answer.results
        return found

    def _parts(self, queries: Sequence[str]) -> Iterator[list[bytes]]:
        """The queries as JSON strings, as many at a time as the server takes."""
        part: list[bytes] = []
        room = self.limits.max_body_bytes - len(b'{"k":,"queries":[]}') - len(str(2**63))
        size = 0
        for query in queries:
            text = json.dumps(whole(query), ensure_ascii=False).encode()
            if part and (len(part) == self.limits.max_queries or size + len(text) + 1 > room):
                yield part
                part, size = [], 0
            part.append(text)
            size += len(text) + 1  # and a comma
        if part:
            yield part

    def _get(self, path: str, type_: type[T]) -> T:
        return self._read(type_, self._ask("GET", path))

    def _read(self, type_: type[T], content: bytes) -> T:
        return from_json(
            type_,
            content,
            where=self.url,
            fix="Is it the address that `steper index serve` printed, and is steper of the same "
            "version there?",
        )

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of the answer; nothing but ``SteperError`` is raised."""
        try:
            response = self._pool.request(
                method, self.url + path, body=body, retries=self._patience, redirect=False
            )
        except HTTPError as error:
            cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            raise SteperError(
                f"the index server does not answer ({type(cause).__name__}, {self._timeout_s:g} s "
                f"allowed, {self._patience.total} retries).",
                where=self.url,
                fix="Start it with `steper index serve`, or see whether this machine can reach it.",
            ) from None
        if response.status != 200:
            raise self._refused(response)
        return response.data

    def _refused(self, response: urllib3.BaseHTTPResponse) -> SteperError:
        """What an answer other than 200 means."""
        status = response.status
        try:
            message = from_json(Failure, response.data, where=self.url).error
        except SteperError:  # not steper's own answer; a proxy's page is of no use here
            message = response.reason or "without a reason"
        if status < 500:
            address = "Give the address that `steper index serve` printed."
            fix = address if status in (301, 302, 307, 308, 401, 403, 404, 405) else ""
            return SteperError(
                f"the index server refused (HTTP {status}): {message}", where=self.url, fix=fix
            )
        busy = "Try again later, or let fewer workers share it." if status == 503 else ""
        return SteperError(
            f"the index server failed (HTTP {status}): {message}",
            where=self.url,
            fix=busy or "Look at what it printed.",
        )


class _Patience(urllib3.Retry):
    """Waits as long as the server asks, and then as after any error.

    Clients that were turned away together would otherwise all come back together.
    """

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, _LONGEST_WAIT_S)

    def sleep(self, response: urllib3.BaseHTTPResponse | None = None) -> None:
        if response is not None:
            self.sleep_for_retry(response)
        time.sleep(self.get_backoff_time())


def _address(url: str) -> tuple[str, str | None]:
    """An address without its login and last slash, and the login, which appears in no message."""
    try:
        parts = parse_url(url)
    except LocationParseError:
        parts = parse_url("")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
        raise SteperError(
            "is not the address of an index server.",
            where=url.rpartition("@")[2].partition("?")[0],
            fix="It looks like http://localhost:8765.",
        )
    login = None if parts.auth is None else unquote(parts.auth)
    return parts._replace(auth=None).url.rstrip("/"), login
