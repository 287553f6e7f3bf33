"""Servers on loopback that misbehave on purpose: a stub that says anything, a proxy with faults.

They speak HTTP/1.1 by hand, because no library will send half an answer.

>>> with Stub(lambda call: http(200, {"choices": []})) as stub:
...     print(stub.url)  # doctest: +SKIP
http://127.0.0.1:54321/v1
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

DROP = b""
"""An answer of no bytes: the connection is closed instead."""


@dataclass(frozen=True)
class Call:
    """What a client sent."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def asked(self) -> dict[str, Any]:
        return json.loads(self.body)


Answer = Callable[[Call], bytes | Awaitable[bytes]]


def http(status: int, body: object, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer; ``body`` is sent as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content))}
    fields |= headers or {}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def said(text: str | None, *, prompt_tokens: int = 7, finish: str = "stop", **more: Any) -> bytes:
    """A good answer in both forms, completion and chat."""
    choice = {"text": text, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3, **more}
    choices = [{**choice, "index": 0, "finish_reason": finish}]
    return http(200, {"model": "stub", "choices": choices, "usage": usage})


class Stub:
    """A server in a thread of its own; remembers the calls it got."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[Call] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        serve = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(serve, self._loop).result()
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while answer := await self._reply(await _read(reader)):
                writer.write(answer)
                await writer.drain()
                if _unfinished(answer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    async def _reply(self, call: Call) -> bytes:
        self.calls.append(call)
        answer = self.answer(call)
        return answer if isinstance(answer, bytes) else await answer


async def _read(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(head[0].split(" ")[1], headers, body)


def _unfinished(answer: bytes) -> bool:
    """Whether the client would wait for more than there is."""
    head, _, content = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return not length.isdigit() or len(content) != int(length)


FAULTS = {"429": 3, "500": 6, "dropped": 6, "slow": 3, "truncated": 6, "not JSON": 6}
"""Faults per hundred calls: 30."""


class FaultProxy(Stub):
    """Stands before a real server; spoils 30 of 100 calls, at random by ``seed``.

    It asks the real server once for calls that differ in their seeds only and remembers the answer,
    so that thousands of calls need not wait for a model on a slow processor.

    Attributes:
        spoiled: how often which fault was made.
        known: the real server's answers, by what was asked but for the seed.
    """

    def __init__(self, upstream: str, *, seed: int, slow_s: float) -> None:
        super().__init__(self._spoil)
        self._upstream, self._slow_s = upstream.removesuffix("/v1"), slow_s
        self._random = random.Random(seed)
        self._asking = asyncio.Lock()
        self.spoiled: Counter[str] = Counter()
        self.known: dict[str, bytes] = {}

    async def _spoil(self, call: Call) -> bytes:
        fault = self._draw()
        self.spoiled[fault] += 1
        match fault:
            case "429":
                return http(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "2"})
            case "500":
                return http(500, {"error": {"message": "out of luck"}})
            case "dropped":
                return DROP
            case "slow":
                await asyncio.sleep(self._slow_s)
        answer = await self._real(call)
        match fault:
            case "truncated":
                return answer[:-20]
            case "not JSON":
                return http(200, b"<html>It works!</html>")
        return answer

    def _draw(self) -> str:
        names, weights = list(FAULTS), list(FAULTS.values())
        return self._random.choices([*names, ""], [*weights, 100 - sum(weights)])[0]

    async def _real(self, call: Call) -> bytes:
        asked = json.dumps({**call.asked, "seed": None})
        async with self._asking:  # the model answers one at a time anyway
            if asked not in self.known:
                self.known[asked] = await asyncio.to_thread(forward, self._upstream, call)
        return self.known[asked]


def forward(server: str, call: Call) -> bytes:
    """What a real server answers to a call."""
    request = urllib.request.Request(
        server + call.path, call.body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return http(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        return http(error.code, error.read())
