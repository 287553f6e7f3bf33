"""Calls over the network: one client per server, attempts until one answers or all have failed.

A caller belongs to one event loop, as its connections do. It knows nothing of caches and sentences.

>>> reply = await caller.ask(payload, run="q1")  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import difflib
import os
import random
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import openai

from steper.accounts import Prices, Purse
from steper.errors import CompletionError, Outage, SteperError
from steper.lm.calls import call_key
from steper.lm.endpoint.address import Endpoint, split_login
from steper.lm.endpoint.faults import Fault, GaveUp, Refusal, judge, without
from steper.lm.endpoint.forms import Payload, Reply, read, size, wire
from steper.lm.endpoint.pace import Host, Pace, choose

RENAMED_LIMIT = "max_completion_tokens"  # what some hosted models insist on
LONGEST_BACKOFF = 120  # units of ``backoff_s``: a minute


@dataclass(slots=True)
class Tally:
    """What happened to the calls, for the summary.

    Attributes:
        made: answers that came over the network, those that find out the form included.
        replayed: answers that were at hand already.
        retried: failed attempts that were made again, by reason.
        without_usage: answers whose server did not tell the tokens used.
    """

    made: int = 0
    replayed: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    without_usage: int = 0

    def remarks(self) -> list[str]:
        """The counts in words; nothing where nothing was asked."""
        if not self.made + self.replayed + self.retries:
            return []
        why = ", ".join(f"{number} {reason}" for reason, number in self.retried.most_common())
        lines = [
            f"calls: {self.made} made, {self.replayed} replayed from the cache, "
            f"{self.retries} made again" + (f" ({why})" if why else "")
        ]
        if self.replayed and not self.made:
            lines.append(
                "no server was asked; if the model behind this name has changed, name another "
                "--cache"
            )
        if self.without_usage:
            lines.append(f"{self.without_usage} answers came without usage; they count as 0 tokens")
        return lines

    @property
    def retries(self) -> int:
        """Failed attempts that were made again."""
        return self.retried.total()


class Caller:
    """Makes calls within one event loop.

    Args:
        endpoint: whom to call.
        tally: where to count.
        prices: of tokens.
        purse: who pays; ``None`` if nobody minds.

    Raises:
        SteperError: if an address is no URL.
    """

    def __init__(
        self, endpoint: Endpoint, tally: Tally, *, prices: Prices, purse: Purse | None
    ) -> None:
        self.endpoint, self.tally = endpoint, tally
        self._prices, self._purse = prices, purse or Purse()
        key = os.environ.get(endpoint.api_key_env) or "none"
        self._secrets: tuple[str, ...] = () if key == "none" else (key,)
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._hosts: list[Host] = []
        for given in dict.fromkeys(endpoint.base_urls):
            url, login = split_login(given)
            if login is not None:
                self._secrets += (login[1], b64encode(":".join(login).encode()).decode())
            # Our own HTTP client, because the official one tries to close itself in a later loop.
            http = openai.DefaultAsyncHttpxClient(auth=login)
            self._clients[url] = openai.AsyncOpenAI(
                base_url=url, api_key=key, max_retries=0, timeout=None, http_client=http
            )
            self._hosts.append(Host(url))
        self._pace = Pace(endpoint.concurrency)
        self._random = random.Random()
        self._limit = "max_tokens"
        # Tokens per byte of a prompt, the most seen so far. No usual tokenizer has more than one.
        self._density = 0.0
        self.sent: set[bytes] = set()  # calls that a server has before it now

    async def ask(self, payload: Payload, *, run: str = "", retries: int | None = None) -> Reply:
        """The answer to ``payload``, paid.

        Args:
            payload: see ``forms``.
            run: calls with the same word lean to the same server.
            retries: further attempts, other than the endpoint's.

        Raises:
            Refusal: if the server refuses the request.
            GaveUp: if every attempt failed.
            SteperError: if no call can succeed.
        """
        faults: list[Fault] = []
        avoid: Host | None = None
        while True:
            try:
                return await self._attempt(payload, run, avoid)
            except _Failed as failed:
                faults.append(failed.fault)
                avoid = failed.host
            except _Renamed:
                continue
            if len(faults) > (self.endpoint.retries if retries is None else retries):
                raise GaveUp(faults, avoid.url)
            self.tally.retried[faults[-1].reason] += 1
            await asyncio.sleep(self._wait_s(faults))

    async def explained(self, error: Refusal | GaveUp, payload: Payload) -> SteperError:
        """The error for the user behind a failed call."""
        if isinstance(error, Refusal):
            if error.status == 404:
                return await self._not_found(error, payload)
            return CompletionError(
                f"the server refuses the request (HTTP {error.status}): {error.message}",
                where=error.url,
                fix="If it is too long, lower --k, --max-steps or the passages' length.",
            )
        unreachable = all(fault.reason == "no connection" for fault in error.faults)
        if unreachable and not self.tally.made:
            return SteperError(
                "no server answers.",
                where=", ".join(host.url for host in self._hosts),
                fix="Start it, or check --base-url; the same command goes on.",
            )
        count = len(error.faults)
        attempts = "1 attempt" if count == 1 else f"{count} attempts"
        return Outage(
            f"no answer after {attempts}; the last failure: {error}.",
            where=error.url,
            fix="The server may be down or too busy: see its log.",
        )

    async def models(self) -> list[str]:
        """The names of the models that the servers offer; empty where they do not say."""
        names: set[str] = set()
        for host in self._hosts:
            try:
                async with asyncio.timeout(self.endpoint.timeout_s):
                    listed = await self._clients[host.url].models.with_raw_response.list()
                    names |= {entry["id"] for entry in listed.http_response.json()["data"]}
            except (openai.OpenAIError, TimeoutError, ValueError, LookupError, TypeError):
                continue  # the list only makes a message better
        return sorted(name for name in names if isinstance(name, str))

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    async def _attempt(self, payload: Payload, run: str, avoid: Host | None) -> Reply:
        now = asyncio.get_running_loop().time
        # Reckoned once the slot is there: by then more is known of tokens per byte.
        async with self._pace.slot() as call, self._purse.hold(most := self._most(payload)):
            host = choose(self._hosts, now(), run=run, avoid=avoid)
            try:
                with host.serving(), self._sending(payload):
                    reply = await self._post(host, payload)
            except Fault as fault:
                if fault.congested:
                    self._pace.too_busy(call)
                if fault.sick:
                    host.failed(now(), self.endpoint.backoff_s)
                raise _Failed(fault, host) from None
            except Refusal:
                host.went_well()
                raise
            host.went_well()
            self._pace.went_well()
            self._purse.pay(reply.usage.cost if reply.counted else most)
        self.tally.made += 1
        self.tally.without_usage += not reply.counted
        return reply

    @contextmanager
    def _sending(self, payload: Payload) -> Iterator[None]:
        key = call_key(payload)
        self.sent.add(key)
        try:
            yield
        finally:
            self.sent.discard(key)

    async def _post(self, host: Host, payload: Payload) -> Reply:
        """One call, one answer."""
        client: Any = self._clients[host.url]
        create = client.completions if payload["form"] == "completions" else client.chat.completions
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = self._limit  # another call may find out meanwhile
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                raw = await create.with_raw_response.create(**wire(payload, limit=limit))
        except Exception as error:
            # Sorted, not swallowed: whatever a server sends, the run gets an error it knows.
            failure = judge(
                error, url=host.url, key_env=self.endpoint.api_key_env, secrets=self._secrets
            )
        renamed = isinstance(failure, Refusal) and RENAMED_LIMIT in failure.message
        if renamed and limit != RENAMED_LIMIT:
            self._limit = RENAMED_LIMIT
            raise _Renamed
        if failure is not None:
            raise failure  # out here, so that the client's own error does not hang on to it
        reply = read(raw.http_response.content, payload["form"])
        tokens = reply.usage.prompt_tokens
        if reply.counted:
            self._density = min(1.0, max(self._density, tokens / max(1, size(payload))))
        usage = replace(
            reply.usage, seconds=loop.time() - started, cost=self._prices.cost(reply.usage)
        )
        return replace(reply, usage=usage)

    def _most(self, payload: Payload) -> float:
        """The most that a call can cost."""
        tokens = size(payload) * (self._density or 1.0)
        prompt = tokens * max(self._prices.prompt, self._prices.cached)
        written: int = payload["max_tokens"]
        return (prompt + written * self._prices.completion) / 1e6

    def _wait_s(self, faults: list[Fault]) -> float:
        """Exponential backoff with full jitter, after the wait that the server asked for."""
        unit_s = self.endpoint.backoff_s
        longest_s = unit_s * min(LONGEST_BACKOFF, 2 ** (len(faults) - 1))
        return faults[-1].wait_s + self._random.uniform(0.0, longest_s)

    async def _not_found(self, refusal: Refusal, payload: Payload) -> SteperError:
        offered = await self.models()
        wanted = self.endpoint.model
        if not offered or wanted in offered:
            return SteperError(
                f"the server does not know the address (HTTP 404): {refusal.message}",
                where=f"{refusal.url}, asked for {payload['form']}",
                fix="Check --base-url, which usually ends in /v1, and --api.",
            )
        near = difflib.get_close_matches(wanted, offered, n=1, cutoff=0.3)
        shown = ", ".join(offered[:20]) + (", …" if len(offered) > 20 else "")
        return SteperError(
            f"the server has no model {wanted}. It offers: {without(shown, self._secrets)}.",
            where=refusal.url,
            fix=f"Did you mean {near[0]}?" if near else "Name one of these.",
        )


class _Renamed(Exception):
    """This server calls the limit of tokens otherwise; the call is to be made again."""


class _Failed(Exception):
    """A fault, and where it happened."""

    def __init__(self, fault: Fault, host: Host) -> None:
        super().__init__(str(fault))
        self.fault, self.host = fault, host
