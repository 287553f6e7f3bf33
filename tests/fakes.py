"""Stand-ins for the outside world: a retriever over a list, a model that recites."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from steper.protocols import LM, Completion, Request, Turn
from steper.types import Passage, Question


class ListRetriever:
    """Ranks passages by shared lower-case words; ties in list order. Records its queries."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages, self.queries = list(passages), list[str]()

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.queries += queries
        return [self._best(query, k) for query in queries]

    def _best(self, query: str, k: int) -> list[Passage]:
        words = set(query.lower().replace("?", " ").replace(".", " ").split())

        def score(passage: Passage) -> int:
            return len(words & set(f"{passage.title} {passage.text}".lower().split()))

        ranked = sorted(self.passages, key=lambda p: -score(p))
        return [passage for passage in ranked if score(passage)][:k]


class ScriptedLM:
    """Says the given lines in order, whatever it is asked. Records its requests."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines, self.requests = list(lines), list[Request]()

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        return Completion(self.lines.pop(0))


def ask(prompt: str) -> Request:
    """A request of a plain prompt."""
    return Request((Turn("assistant", prompt),), Question("q", "Who?", "A"), (), (), False)


def completions(lm: LM, requests: Sequence[Request]) -> list[Completion]:
    """What a model answers to requests made at the same time."""

    async def together() -> list[Completion]:
        return await asyncio.gather(*(lm.complete(request) for request in requests))

    return asyncio.run(together())


def texts(lm: LM, requests: Sequence[Request]) -> list[str]:
    return [completion.text for completion in completions(lm, requests)]
