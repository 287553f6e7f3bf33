"""Requests for the endpoint LM, and ways to have them answered."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

from faults import http
from steper.lm.endpoint import Endpoint, EndpointLM
from steper.protocols import Completion, Request, Sampling, Turn
from steper.types import Question, Step

CUE = "So the answer is:"
QUESTION = Question("q1", "What show did Roy Clark host?", "Hee Haw")
SYSTEM, USER = Turn("system", "Reason.\n"), Turn("user", "Question: What show?\nReasoning:\n")


def request(
    written: str = "", *, final: bool = False, name: str = "q1", candidate: int = 0
) -> Request:
    return Request(
        turns=(SYSTEM, USER, Turn("assistant", written)),
        question=replace(QUESTION, id=name, question=name),
        steps=(Step("s", (), "He sang."),) if written else (),
        passages=(),
        final=final,
        nudge="Go on.",
        candidate=candidate,
    )


def numbered(number: int) -> Request:
    """Requests whose prompts differ."""
    asked = request(name=f"q{number}")
    return replace(asked, turns=(Turn("user", f"Question {number}\n"), Turn("assistant", "")))


def endpoint(*urls: str, api: Any = "completions", **more: Any) -> Endpoint:
    return Endpoint("m", urls, api=api, **{"backoff_s": 0.001, "timeout_s": 5.0, **more})


def lm(*urls: str, sampling: Sampling = Sampling(), **more: Any) -> EndpointLM:  # noqa: B008
    kept = {name: more.pop(name) for name in ("cache", "prices", "purse") if name in more}
    return EndpointLM(endpoint(*urls, **more), sampling, **kept)


def complete(model: EndpointLM, *requests: Request) -> list[Completion]:
    async def main() -> list[Completion]:
        return list(await asyncio.gather(*(model.complete(r) for r in requests)))

    return asyncio.run(main())


def refused(status: int, message: str) -> bytes:
    return http(status, {"error": {"message": message}})


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
