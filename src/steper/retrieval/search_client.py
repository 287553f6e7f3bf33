"""A connection to an OpenSearch or Elasticsearch cluster, through its official client.

What passes by itself (a lost connection, a node that starts anew, a full queue) is tried again for
half a minute; what remains becomes an error that names the cluster.

>>> cluster = Cluster("opensearch", ["http://localhost:9200"])  # doctest: +SKIP
>>> cluster.call(cluster.client.indices.refresh, index="passages")  # doctest: +SKIP

User and password are taken from the URLs, or from the environment variables
``STEPER_SEARCH_USER`` and ``STEPER_SEARCH_PASSWORD``, or ``STEPER_SEARCH_API_KEY`` (Elasticsearch
only).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from steper.errors import SteperError
from steper.retrieval.info import needs

T = TypeVar("T")

ServerKind = Literal["opensearch", "elasticsearch"]

PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""How long to wait before each further try; half a minute is what a node needs to start anew."""

_PASSING = (429, 502, 503, 504)
"""HTTP statuses that pass by themselves."""

_TIMEOUT_S = 60
_PRODUCTS = {"opensearch": "OpenSearch", "elasticsearch": "Elasticsearch"}


class Cluster:
    """A cluster that answers; threads may share it.

    Attributes:
        client: the official client.
        urls: of the nodes, without credentials.
        where: the same, for messages.
    """

    def __init__(self, kind: ServerKind, urls: Sequence[str]) -> None:
        """Connect.

        Raises:
            SteperError: if a URL is none, the client is not installed, nobody answers, or another
                product does.
        """
        if not urls:
            raise SteperError("no URL of a node is given.", where="urls", fix=_EXAMPLE)
        self.urls = tuple(without_credentials(url) for url in urls)
        self.where = ", ".join(self.urls)
        user = _credentials(urls[0])
        match kind:
            case "opensearch":
                self.client, self._errors = _opensearch(self.urls, user)
            case "elasticsearch":
                self.client, self._errors = _elasticsearch(self.urls, user)
        version = self.call(self.client.info)["version"]
        if (kind == "opensearch") != (version.get("distribution") == "opensearch"):
            raise SteperError(
                f"is not {_PRODUCTS[kind]}.",
                where=self.where,
                fix="Choose the kind of index that fits the server: opensearch or elasticsearch.",
            )

    def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """Call a method of the client, again where the trouble may pass.

        Raises:
            SteperError: if it does not, or the cluster refuses.
        """
        for pause in (*PAUSES_S, None):
            try:
                return method(**arguments)
            except self._errors as error:
                status = getattr(error, "status_code", None)
                # Without a status it never came to an answer.
                if pause is None or (isinstance(status, int) and status not in _PASSING):
                    raise self._explained(status, error) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def call_each(
        self, send: Callable[[list[T]], list[Mapping[str, Any]]], items: Sequence[T]
    ) -> list[Mapping[str, Any]]:
        """Send items in one request, and those that the cluster was too busy for again.

        Args:
            send: gives an answer for each item.
            items: what is sent.

        Returns:
            The answers, in the order of the items.

        Raises:
            SteperError: if an item is refused or not taken in the end.
        """
        answers: dict[int, Mapping[str, Any]] = {}
        left = list(range(len(items)))
        for pause in (*PAUSES_S, None):
            answers.update(zip(left, send([items[i] for i in left]), strict=True))
            left = [i for i in left if answers[i].get("status") in _PASSING]
            if not left or pause is None:
                break
            time.sleep(pause)
        for answer in answers.values():
            if "error" in answer:
                raise self._refused(answer["error"])
        return [answers[i] for i in range(len(items))]

    def _explained(self, status: object, error: Exception) -> SteperError:
        if not isinstance(status, int):
            return SteperError(
                f"no answer from the cluster: {_brief(error)}.", where=self.where, fix=_START
            )
        if status in (401, 403):
            return SteperError(
                f"the cluster refuses this user (HTTP {status}).",
                where=self.where,
                fix="Set STEPER_SEARCH_USER and STEPER_SEARCH_PASSWORD to one who may.",
            )
        if status in _PASSING:
            return SteperError(
                f"the cluster is too busy, and was for half a minute (HTTP {status}).",
                where=self.where,
                fix="Try again later, or give it more nodes or memory.",
            )
        return self._refused(error)

    def _refused(self, reason: object) -> SteperError:
        return SteperError(
            f"the cluster refuses: {_brief(reason)}.",
            where=self.where,
            fix="Its client must be of the same major version as the server.",
        )


_EXAMPLE = "Give one or more, as http://localhost:9200."
_START = "Check the URL and that a server runs there; `docker compose up -d` starts one here."


def _brief(reason: object) -> str:
    return " ".join(str(reason).split())[:500]


def without_credentials(url: str) -> str:
    """The URL of a node as it may be shown and stored, its port said.

    Raises:
        SteperError: if it is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # no port, or no IPv6 address
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = url.rpartition("@")[2]
        raise SteperError("is not the URL of a node.", where=shown, fix=_EXAMPLE)
    # Clients want the port said; :9200 is not a default to them.
    port = port or (443 if parts.scheme == "https" else 9200)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _credentials(url: str) -> tuple[str, str] | None:
    parts = urlsplit(url)
    user = unquote(parts.username or "") or os.environ.get("STEPER_SEARCH_USER", "")
    password = unquote(parts.password or "") or os.environ.get("STEPER_SEARCH_PASSWORD", "")
    return (user, password) if user else None


def _opensearch(urls: Sequence[str], user: tuple[str, str] | None) -> tuple[Any, Any]:
    try:
        from opensearchpy import OpenSearch
        from opensearchpy.exceptions import OpenSearchException
    except ImportError:
        raise needs("opensearch", "An index in OpenSearch") from None
    client = OpenSearch(hosts=list(urls), http_auth=user, timeout=_TIMEOUT_S, max_retries=0)
    return client, OpenSearchException


def _elasticsearch(urls: Sequence[str], user: tuple[str, str] | None) -> tuple[Any, Any]:
    try:
        from elasticsearch import ApiError, Elasticsearch, TransportError
    except ImportError:
        raise needs("elasticsearch", "An index in Elasticsearch") from None
    key = os.environ.get("STEPER_SEARCH_API_KEY")
    how: dict[str, Any] = {"api_key": key} if key else {"basic_auth": user}
    client = Elasticsearch(hosts=list(urls), request_timeout=_TIMEOUT_S, max_retries=0, **how)
    return client, (ApiError, TransportError)
