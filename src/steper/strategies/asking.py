"""Strategies in which the model says what to search for: Self-Ask, and free turns.

A sentence that holds the search cue orders the next search: in "It was Roy Clark. Follow up: What
did Roy Clark host?" the query is the follow-up question. A sentence without the cue orders none,
and the next step only writes; with ``force_search`` the sentence itself is the query then, because
small models tend to search too little.

>>> clark = Step("", (), "Jim Halsey managed Roy Clark. Search: Roy Clark show")
>>> Asking(Limits(), search_cue="Search:", search_first=False).next(
...     Question("1", "Who?", "x"), [clark], None)
Search(query='Roy Clark show')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.prompts import parse_query, statement_of
from steper.protocols import Finish, Generate, Search
from steper.strategies.limits import Limits
from steper.types import Question, Step


@dataclass(frozen=True, slots=True)
class Asking:
    """The model chooses its queries.

    Attributes:
        limits: how far a run may go.
        search_cue: what stands before a query.
        search_first: whether step 1 searches with the question: Self-Ask does, free turns do not.
        force_search: whether every step searches, asked or not.
    """

    limits: Limits
    search_cue: str
    search_first: bool
    force_search: bool = False

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None, *, tokens: int = 0
    ) -> Search | Generate | Finish:
        """See ``steper.protocols.Strategy.next``."""
        if finish := self.limits.finish(steps):
            return finish
        if searched is None and not self.limits.spent(steps, tokens):
            query = self._query(question, steps)
            if query:
                return Search(query)
        return self.limits.generate(steps, tokens)

    def _query(self, question: Question, steps: Sequence[Step]) -> str | None:
        if not steps:
            return question.question if self.search_first or self.force_search else None
        last = steps[-1].reasoning
        asked = parse_query(last, cue=self.search_cue)
        stated = statement_of(last, cue=self.search_cue)
        return asked or ((stated or question.question) if self.force_search else None)
