"""The offline world's teacher: a rule-based reader of the passages retrieved so far.

It follows the question's relations from entity to entity. Where a retrieved passage states the
fact it needs, it writes the fact down; where none does, it says what to look for. At a set rate
it misreads a fact, taking another of the same kind from the passages, and follows the wrong trail
from there, so that the answer filter has something to do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from steper.errors import SteperError
from steper.prompts import answer_sentence, statement_of
from steper.protocols import Completion, Request
from steper.world.generator import NAMES, Fact, Relation, entity_of, read, relation_named


class WorldTeacher:
    """Implements ``steper.protocols.LM`` for questions of the offline world.

    Args:
        error_rate: chance that a stated fact is misread, in [0, 1).
        seed: the same seed, question and passages give the same sentences.
    """

    def __init__(self, *, error_rate: float = 0.05, seed: int = 0) -> None:
        self.error_rate, self.seed = error_rate, seed

    async def complete(self, request: Request) -> Completion:
        """The next sentence of the run; only the request's passages are read.

        Raises:
            SteperError: if the question is none of the offline world's.
        """
        chain = request.question.chain
        if not chain or any(hop.question not in NAMES for hop in chain):
            raise SteperError(
                "is no question of the offline world, so its teacher cannot answer it.",
                where=f"question {request.question.id}",
                fix="Name another model.",
            )
        return Completion(self._next_sentence(request))

    def _next_sentence(self, request: Request) -> str:
        facts = {
            (fact.subject, fact.relation): fact
            for passage in request.passages
            for fact in read(passage.text)
        }
        cue = request.search_cue
        written = {statement_of(step.reasoning, cue=cue) for step in request.steps}
        comparison = request.question.type == "comparison"
        subject, stated, values = "", "", list[str]()
        for hop in request.question.chain:
            relation = relation_named(hop.question)
            # In a chain the next subject is whatever was read last, right or wrong.
            subject = values[-1] if values and not comparison else entity_of(hop.title)
            value = _value_stated(written, relation, subject)
            if value is None:
                fact = facts.get((subject, relation.name))
                if fact is None:
                    if request.final:
                        return _answer(values[-1] if values else "unknown", request)
                    # Where it says what to search for, it does so behind the fact it has just read.
                    order = f"{cue} {relation.query(subject)}" if cue else relation.search(subject)
                    return f"{stated} {order}".lstrip()
                if stated:
                    return stated
                value = self._read_value(request, fact, list(facts.values()))
                if not request.final:
                    stated = relation.statement(subject, value)
                    if not cue:
                        return stated
            values.append(value)
        if stated:
            return stated
        answer = _compare(request, values) if comparison else values[-1]
        return _answer(answer, request)

    def _read_value(self, request: Request, fact: Fact, facts: Sequence[Fact]) -> str:
        rng = random.Random(f"{self.seed}-{request.question.id}-{len(request.steps)}")
        kind = relation_named(fact.relation).value
        others = [
            other.value
            for other in facts
            if relation_named(other.relation).value == kind and other.value != fact.value
        ]
        return rng.choice(others) if others and rng.random() < self.error_rate else fact.value


def _value_stated(written: set[str], relation: Relation, subject: str) -> str | None:
    """The value that an earlier sentence gave for this fact."""
    prefix, suffix = relation.statement(subject, "\0").split("\0")
    for sentence in written:
        if sentence.startswith(prefix) and sentence.endswith(suffix):
            return sentence[len(prefix) : -len(suffix)]
    return None


def _compare(request: Request, values: Sequence[str]) -> str:
    first, second = (entity_of(hop.title) for hop in request.question.chain)
    if request.question.question.startswith("Which came first"):
        return first if int(values[0]) <= int(values[1]) else second
    return "yes" if values[0] == values[1] else "no"


def _answer(answer: str, request: Request) -> str:
    sentence = answer_sentence(answer, cue=request.answer_cue)
    return sentence.removeprefix(request.answer_cue) if request.final else sentence
