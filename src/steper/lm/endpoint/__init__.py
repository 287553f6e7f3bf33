"""A language model behind an OpenAI-compatible server: vLLM, SGLang, Ollama, a hosted API.

Calls go out many at once, are made again when they fail, and are never paid for twice: what was
answered once is replayed from the cache. See docs/endpoints.md.

>>> endpoint = Endpoint("llama", ("http://localhost:8000/v1",))
>>> lm = EndpointLM(endpoint, Sampling(), cache=CallCache(path))  # doctest: +SKIP
>>> (await lm.complete(request)).text  # doctest: +SKIP
'Roy Clark hosted Hee Haw.'
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from steper.accounts import Prices, Purse
from steper.errors import CompletionError, SteperError
from steper.lm.calls import CallCache, call_key
from steper.lm.endpoint.address import Api, Endpoint, split_login
from steper.lm.endpoint.caller import Caller, Tally
from steper.lm.endpoint.faults import GaveUp, Refusal
from steper.lm.endpoint.forms import Form, Payload, Reply, cue, payload, spoken
from steper.lm.endpoint.probe import find_form
from steper.protocols import Completion, Request, Sampling
from steper.store import write_atomic

GRACE_S = 10.0
"""So long an answer that is paid is waited for when all stops."""

__all__ = ["Api", "Endpoint", "EndpointLM", "Tally"]


class EndpointLM:
    """Implements ``steper.protocols.LM`` with calls to a server.

    It may be used in one event loop after another, not in several at once.

    Args:
        endpoint: the model and where it is.
        sampling: how it draws its words.
        cache: answers that are paid already.
        prices: of tokens, for the costs reported and held.
        purse: pays for every call before it is made; ``None`` for no budget.
        pin: file that keeps the form of asking, which may not change under a run.

    Attributes:
        form: how the server is asked; ``None`` until that is found out.
        tally: what happened to the calls so far.

    Raises:
        SteperError: if the endpoint has no address, or one that is no URL.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        sampling: Sampling,
        *,
        cache: CallCache | None = None,
        prices: Prices = Prices(),  # noqa: B008 (frozen)
        purse: Purse | None = None,
        pin: Path | None = None,
    ) -> None:
        if not endpoint.base_urls:
            raise SteperError("no server is named.", where="--base-url")
        self._urls = sorted({split_login(url)[0] for url in endpoint.base_urls})
        self.endpoint, self.sampling = endpoint, sampling
        self.form: Form | None = None if endpoint.api == "auto" else endpoint.api
        self.tally = Tally()
        self._cache, self._prices, self._purse, self._pin = cache, prices, purse, pin
        self._loop: asyncio.AbstractEventLoop | None = None

    def remarks(self) -> list[str]:
        """What the user should know about the calls."""
        return self.tally.remarks()

    async def complete(self, request: Request) -> Completion:
        """What follows the request's prompt; see ``steper.protocols.LM``."""
        await self._enter()
        form = await self._form()
        asked = payload(request, form, model=self.endpoint.model, sampling=self.sampling)
        open_line = cue(request)
        completion = await self._once(asked, request.run_id)
        text = spoken(completion.text, form=form, cue=open_line)
        if "stop" in asked and not text.strip():
            # Templates trim messages: the newline they took off comes first then, and ends it.
            asked = {name: value for name, value in asked.items() if name != "stop"}
            again = await self._once(asked, request.run_id)
            text = spoken(again.text, form=form, cue=open_line)
            usage = completion.usage + again.usage
            return Completion(text, usage, completion.replayed and again.replayed)
        return replace(completion, text=text)

    async def _enter(self) -> None:
        """Start afresh in a new event loop: connections, locks and tasks belong to one."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        self._finding: asyncio.Task[Form] | None = None
        self._under_way: dict[bytes, asyncio.Task[Completion]] = {}
        self._caller = Caller(self.endpoint, self.tally, prices=self._prices, purse=self._purse)
        # ``asyncio.run`` closes what an asynchronous generator holds, and so the connections.
        self._closing = _closing(self._caller)
        await anext(self._closing)

    async def _form(self) -> Form:
        """The form of asking, found out once and remembered with the answers."""
        if self.form:
            self._keep(self.form)
            return self.form
        # One search for all who wait, and one failure: each in turn would try all over again.
        if self._finding is None or self._finding.done():
            self._finding = asyncio.ensure_future(self._find())
            self._finding.add_done_callback(lambda task: task.cancelled() or task.exception())
        form = await asyncio.shield(self._finding)
        self._keep(form)
        self.form = form
        return form

    def _keep(self, form: Form) -> None:
        """Write the form down; raise where the run was begun in another."""
        if not self._pin:
            return
        begun = self._pin.read_text().strip() if self._pin.exists() else form
        if begun != form:
            raise SteperError(
                f"the run was begun with --api {begun}, and this is {form}.",
                where="--api" if self.endpoint.api != "auto" else "--base-url",
                fix=f"Give --api {begun} if the server takes it, or choose another --out.",
            )
        write_atomic(self._pin, f"{form}\n")
        self._pin = None

    async def _find(self) -> Form:
        model = self.endpoint.model
        asked: Payload = {"form": "auto", "model": model, "base_urls": self._urls}
        known = self._cache.get(asked) if self._cache is not None else None
        for form in ("chat", "chat-prefix", "completions"):
            if known and known.text == form:
                return form
        found = await find_form(self._caller, model)
        if self._cache is not None:
            self._cache.put(asked, Completion(found))
        return found

    async def _once(self, asked: Payload, run: str) -> Completion:
        """The answer, asked for by one only of those who want it at the same time."""
        if known := self._known(asked):
            return known
        key = call_key(asked)
        first = key not in self._under_way
        if first:
            task = asyncio.ensure_future(self._pay(asked, run))
            self._under_way[key] = task
            task.add_done_callback(lambda task: self._ended(key, task))
        task = self._under_way[key]
        try:
            completion = await asyncio.shield(task)
        except asyncio.CancelledError:
            # What a server has before it is paid, so its answer is waited for, and kept.
            if key in self._caller.sent and not task.done():
                await asyncio.wait([task], timeout=GRACE_S)
            raise
        if first:
            return completion
        self.tally.replayed += 1
        return replace(completion, replayed=True)

    def _ended(self, key: bytes, task: asyncio.Task[Completion]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen: where nobody waits any more, asyncio would complain of it

    def _known(self, asked: Payload) -> Completion | None:
        known = self._cache.get(asked) if self._cache is not None else None
        if known is None:
            return None
        self.tally.replayed += 1
        return replace(known, usage=replace(known.usage, cost=self._prices.cost(known.usage)))

    async def _pay(self, asked: Payload, run: str) -> Completion:
        try:
            reply = await self._caller.ask(asked, run=run)
        except (Refusal, GaveUp) as error:
            raise await self._caller.explained(error, asked) from None
        completion = Completion(_text(reply, asked, self._urls[0]), reply.usage)
        if self._cache is not None:
            self._cache.put(asked, completion, model=reply.model)
        return completion


def _text(reply: Reply, asked: Payload, where: str) -> str:
    """The words of a reply that has some.

    Raises:
        CompletionError: if it has none, as when a model has only been thinking.
    """
    form = asked["form"]
    thinking = form != "completions" and not spoken(reply.text or "", form=form)
    if reply.text is None or (thinking and reply.finish == "length"):
        raise CompletionError(
            f"the answer has no text; the server says that it ended by {reply.finish!r}.",
            where=where,
            fix="If the model thinks first, raise --max-tokens, or switch its thinking off.",
        )
    return reply.text


async def _closing(caller: Caller) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await caller.close()
