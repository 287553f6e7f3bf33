"""Stand-ins for the outside world: a retriever over a list, a model that recites."""

from __future__ import annotations

from collections.abc import Sequence

from steper.protocols import Request
from steper.types import Passage


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

    def complete(self, requests: Sequence[Request]) -> list[str]:
        self.requests += requests
        return [self.lines.pop(0) for _ in requests]
