"""The HTTP side of an index: what waits is searched together, and whatever comes, it lives on.

Searches run in a thread of their own, so ``GET /health`` answers meanwhile. A request that the
server cannot or will not meet is answered with 4xx or 5xx and ``{"error": "what is wrong"}``.

>>> import uvicorn  # doctest: +SKIP
>>> uvicorn.run(app(open_index("runs/index"), Limits()))  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from steper.errors import SteperError
from steper.retrieval.info import Index, IndexInfo
from steper.retrieval.remote import Answer, Asked, Failure, Limits
from steper.retrieval.searches import Busy, Health, Searches
from steper.store import from_json, to_json
from steper.types import Passage

T = TypeVar("T")

EXAMPLE = '{"queries": ["Who hosted Hee Haw?"], "k": 4}'
_BODY_S = 30.0
"""How long a request may take to arrive."""
_RETRY_AFTER_S = 1
_LONGEST_MESSAGE = 500


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": description}
    for status, description in (
        (408, "The request did not arrive in time."),
        (413, "The request has too many bytes."),
        (422, "The request is not of the right form, or asks for too much."),
        (500, "The search failed."),
        (503, "Too many queries wait; come again later."),
    )
}


def app(index: Index, limits: Limits) -> FastAPI:
    """The web application that offers an index: ``/search``, ``/info``, ``/limits``, ``/health``.

    Args:
        index: searched from one thread at a time.
        limits: what is taken.
    """
    searches = Searches(index, limits.max_waiting)
    info, fingerprint = index.info, index.info.fingerprint
    api = FastAPI(
        title="A steper index",
        version=version("steper"),
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a proxy may have taken a part of the path away
    )
    api.add_exception_handler(HTTPException, _problem)
    api.add_exception_handler(ClientDisconnect, _nobody)
    api.add_exception_handler(Exception, _crash)
    body = {"required": True, "content": {"application/json": {"schema": _schema(limits)}}}

    @api.post(
        "/search", response_model=Answer, responses=_PROBLEMS, openapi_extra={"requestBody": body}
    )
    async def search(request: Request) -> Response:
        """The passages of each query, best first."""
        asked = await _read(request, limits)
        results = await _unless_gone(searches.find(asked), request)
        rows = [[_row(passage) for passage in passages] for passages in results]
        return _json({"results": rows, "index": fingerprint})

    @api.get("/info", response_model=IndexInfo)
    async def tell_info() -> Response:
        """What the index is made of."""
        return Response(to_json(info), media_type="application/json")

    @api.get("/limits")
    async def tell_limits() -> Limits:
        """What this server takes."""
        return limits

    @api.get("/health")
    async def health() -> Health:
        """Whether the server is alive, and how much it has to do."""
        return searches.health()

    return api


async def _read(request: Request, limits: Limits) -> Asked:
    """The request's content.

    Raises:
        HTTPException: if it is too large, too slow, malformed, or asks for too much.
    """
    told = request.headers.get("content-length", "0")
    too_large = HTTPException(
        413,
        f"The request has more than {limits.max_body_bytes:,} bytes. Send fewer queries at once.",
    )
    if int(told) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"The request took more than {_BODY_S:g} s to arrive.") from None
    try:
        asked = from_json(Asked, bytes(body), where="request", fix=f"It looks like {EXAMPLE}.")
    except SteperError as error:
        raise HTTPException(422, str(error)) from None
    if problem := _problem_with(asked, limits):
        raise HTTPException(422, problem)
    return asked


def _problem_with(asked: Asked, limits: Limits) -> str:
    """Why a request is not taken; empty if it is."""
    if asked.k < 1:
        return f"k is {asked.k}, but must be at least 1."
    if asked.k > limits.max_k:
        return _beyond("passages for a query", asked.k, limits.max_k, "--max-k")
    if len(asked.queries) > limits.max_queries:
        return _beyond("queries", len(asked.queries), limits.max_queries, "--max-queries")
    longest = max(map(len, asked.queries), default=0)
    if longest > limits.max_query_chars:
        return f"A query has {longest:,} characters; this server takes {limits.max_query_chars:,}."
    return ""


def _beyond(what: str, asked: int, allowed: int, option: str) -> str:
    return (
        f"{asked:,} {what} are asked for; this server takes {allowed:,}. "
        f"Ask for less, or start it with a larger {option}."
    )


async def _unless_gone(work: Coroutine[Any, Any, T], request: Request) -> T:
    """What ``work`` gives; it is cancelled when the client goes.

    Raises:
        ClientDisconnect: if it went.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return await _answered(answer)
    finally:
        answer.cancel()
        gone.cancel()


async def _answered(answer: asyncio.Future[T]) -> T:
    """The result of a search that is over.

    Raises:
        HTTPException: 503 if too many waited already, 500 if it failed.
    """
    try:
        return answer.result()
    except Busy as error:
        wait = {"Retry-After": str(_RETRY_AFTER_S)}
        raise HTTPException(503, str(error), wait) from None
    except SteperError as error:
        raise HTTPException(500, str(error)) from None


async def _gone(request: Request) -> None:
    """Return when the client of a request that has been read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _row(passage: Passage) -> dict[str, str]:
    return {"id": passage.id, "title": passage.title, "text": passage.text}


def _schema(limits: Limits) -> dict[str, Any]:
    """The form of a request for the API's own description, with the limits of this server."""
    schema = TypeAdapter(Asked).json_schema()
    schema["properties"]["k"] |= {"minimum": 1, "maximum": limits.max_k}
    schema["properties"]["queries"] |= {"maxItems": limits.max_queries}
    schema["properties"]["queries"]["items"] |= {"maxLength": limits.max_query_chars}
    return schema


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII alone: any text can be sent so, even half a surrogate pair.
    return Response(json.dumps(content), status, headers, "application/json")


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)[:_LONGEST_MESSAGE]
    return _json({"error": message}, error.status_code, dict(error.headers or {}))


async def _crash(_: Request, error: Exception) -> Response:
    return _json({"error": f"The server has a fault ({type(error).__name__}); see its log."}, 500)


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
