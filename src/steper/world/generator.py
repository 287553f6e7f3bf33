"""A seeded world of fictional people, films, books, bands, companies and towns.

Every name is a pair of ordinary words ("Amber Quill"). The pairs are split once and for all into
three parts (``pretrain``, ``train``, ``test``), so no entity of one part ever appears in another
and reading the retrieved passages is the only way to answer. The words themselves are shared:
a small model can copy a name it has never seen, and BM25 is misled by names that share a word.

>>> world = World.generate(seed=0, part="test", entities=60)
>>> question = world.questions(1, seed=0)[0]
>>> question.split
'test'
"""

from __future__ import annotations

import random
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

from steper.types import Hop, Passage, Question

Part = Literal["pretrain", "train", "test"]
Kind = Literal["person", "film", "book", "band", "company", "town"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation: what it joins and how passages and questions word it.

    ``templates`` state the fact in a passage (``{s}`` subject, ``{v}`` value); ``nouns`` name the
    value inside a question; ``asks`` are whole questions. The first noun is the canonical one,
    used in reasoning.
    """

    name: str
    value: Kind | Literal["year"]
    templates: tuple[str, ...]
    nouns: tuple[str, ...]
    asks: tuple[str, ...]

    def statement(self, subject: str, value: str) -> str:
        """The fact as the canonical reasoning sentence."""
        return f"{self.nouns[0].format(subject).replace('the', 'The', 1)} is {value}."

    def search(self, subject: str) -> str:
        """What to look for where the fact has not been read yet."""
        return f"I need to find {self.query(subject)}."

    def query(self, subject: str) -> str:
        """The same, without the sentence around it."""
        return self.nouns[0].format(subject)


def _year(*templates: str, ask: str) -> Relation:
    return Relation("year", "year", templates, ("the year of {}",), (ask,))


RELATIONS: dict[Kind, tuple[Relation, ...]] = {
    "film": (
        Relation(
            "director",
            "person",
            (
                "{s} is a film directed by {v}.",
                "The film {s} was directed by {v}.",
                "{s} is a movie that had {v} as its director.",
            ),
            ("the director of {}", "the person who directed {}"),
            ("Who directed {}?", "Who is the director of {}?"),
        ),
        Relation(
            "star",
            "person",
            ("{s} stars {v}.", "{s} has {v} in the leading role.", "The star of {s} is {v}."),
            ("the star of {}", "the person who starred in {}"),
            ("Who starred in {}?", "Who is the star of {}?"),
        ),
        Relation(
            "studio",
            "company",
            ("{s} was produced by {v}.", "The studio behind {s} is {v}."),
            ("the studio of {}", "the company that produced {}"),
            ("Which company produced {}?", "What is the studio of {}?"),
        ),
        _year(
            "{s} was released in {v}.",
            "{s} came to the cinemas in {v}.",
            ask="When was {} released?",
        ),
    ),
    "book": (
        Relation(
            "author",
            "person",
            (
                "{s} is a novel written by {v}.",
                "The book {s} was written by {v}.",
                "{s} is a book by the author {v}.",
            ),
            ("the author of {}", "the person who wrote {}"),
            ("Who wrote {}?", "Who is the author of {}?"),
        ),
        Relation(
            "publisher",
            "company",
            ("{s} was published by {v}.", "The publisher of {s} is {v}."),
            ("the publisher of {}", "the company that published {}"),
            ("Which company published {}?", "What is the publisher of {}?"),
        ),
        _year(
            "{s} was first printed in {v}.",
            "{s} appeared in the shops in {v}.",
            ask="When was {} first printed?",
        ),
    ),
    "band": (
        Relation(
            "singer",
            "person",
            (
                "{s} is a band fronted by {v}.",
                "The band {s} has {v} as its singer.",
                "{s} is a group whose singer is {v}.",
            ),
            ("the singer of {}", "the person who sings in {}"),
            ("Who sings in {}?", "Who is the singer of {}?"),
        ),
        Relation(
            "hometown",
            "town",
            ("{s} comes from {v}.", "{s} was formed in the town of {v}."),
            ("the hometown of {}", "the town where {} was formed"),
            ("Which town does {} come from?", "What is the hometown of {}?"),
        ),
        Relation(
            "label",
            "company",
            ("{s} is signed to {v}.", "The record label of {s} is {v}."),
            ("the label of {}", "the company that signed {}"),
            ("Which company signed {}?", "What is the label of {}?"),
        ),
        _year("{s} first played in {v}.", "{s} started in {v}.", ask="When did {} first play?"),
    ),
    "company": (
        Relation(
            "founder",
            "person",
            (
                "{s} is a company founded by {v}.",
                "The company {s} was founded by {v}.",
                "{s} is a firm that has {v} as its founder.",
            ),
            ("the founder of {}", "the person who founded {}"),
            ("Who founded {}?", "Who is the founder of {}?"),
        ),
        Relation(
            "seat",
            "town",
            ("{s} is based in {v}.", "The head office of {s} is in {v}."),
            ("the seat of {}", "the town where {} is based"),
            ("Where is {} based?", "What is the seat of {}?"),
        ),
        _year("{s} was set up in {v}.", "{s} opened in {v}.", ask="When was {} set up?"),
    ),
    "person": (
        Relation(
            "birthplace",
            "town",
            (
                "{s} was born in {v}.",
                "{s} is a person born in the town of {v}.",
                "The birthplace of {s} is {v}.",
            ),
            ("the birthplace of {}", "the town where {} was born"),
            ("Where was {} born?", "What is the birthplace of {}?"),
        ),
        Relation(
            "employer",
            "company",
            ("{s} works for {v}.", "{s} is employed by {v}."),
            ("the employer of {}", "the company that employs {}"),
            ("Which company employs {}?", "What is the employer of {}?"),
        ),
        Relation(
            "mentor",
            "person",
            ("{s} was taught by {v}.", "{s} is a former student of {v}."),
            ("the mentor of {}", "the person who taught {}"),
            ("Who taught {}?", "Who is the mentor of {}?"),
        ),
    ),
    "town": (
        Relation(
            "mayor",
            "person",
            (
                "{s} is a town whose mayor is {v}.",
                "The town {s} is led by {v}.",
                "The mayor of {s} is {v}.",
            ),
            ("the mayor of {}", "the person who leads {}"),
            ("Who is the mayor of {}?", "Who leads {}?"),
        ),
        Relation(
            "twin",
            "town",
            ("{s} is twinned with {v}.", "{s} has {v} as its twin town."),
            ("the twin of {}", "the town twinned with {}"),
            ("Which town is twinned with {}?", "What is the twin of {}?"),
        ),
    ),
}

KIND_SHARES: dict[Kind, float] = {
    "person": 0.30,
    "film": 0.20,
    "book": 0.13,
    "band": 0.12,
    "company": 0.12,
    "town": 0.13,
}

SECOND = "More about "
"""Begins the title of an entity's second passage."""

NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"


class Fact(NamedTuple):
    """One fact: subject, relation name, value."""

    subject: str
    relation: str
    value: str


@cache
def words() -> tuple[str, ...]:
    """The fixed pool of ordinary words that names are made of, capitalised."""
    text = (resources.files("steper.world") / "words.txt").read_text(encoding="utf-8")
    return tuple(word.capitalize() for word in text.split())


def part_of(name: str) -> Part:
    """The part a two-word name belongs to, for ever: 80% pretrain, 10% train, 10% test."""
    bucket = zlib.crc32(name.encode()) % 10
    return "train" if bucket == 0 else "test" if bucket == 1 else "pretrain"


@cache
def _readers() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """One pattern per passage template: the inverse of the generator's wording."""
    readers = []
    for relations in RELATIONS.values():
        for relation in relations:
            value = r"\d{4}" if relation.value == "year" else NAME
            for template in relation.templates:
                pattern = re.escape(template).replace(r"\{s\}", f"(?P<s>{NAME})")
                pattern = pattern.replace(r"\{v\}", f"(?P<v>{value})")
                readers.append((relation.name, re.compile(pattern)))
    return tuple(readers)


@cache
def read(text: str) -> tuple[Fact, ...]:
    """Every fact a passage states, in the order it states them.

    >>> read("Silver Harbor is a film directed by Amber Quill.")
    (Fact(subject='Silver Harbor', relation='director', value='Amber Quill'),)
    """
    facts = []
    for sentence in re.split(r"(?<=\.) ", text):
        for name, pattern in _readers():
            if match := pattern.fullmatch(sentence):
                facts.append(Fact(match["s"], name, match["v"]))
                break
    return tuple(facts)


def entity_of(title: str) -> str:
    """The entity that a passage of that title is about."""
    return title.removeprefix(SECOND)


NAMES = frozenset(relation.name for relations in RELATIONS.values() for relation in relations)
"""Of all relations."""


def relation_named(name: str) -> Relation:
    """The relation of that name (years share one noun, so any of them serves)."""
    return next(r for relations in RELATIONS.values() for r in relations if r.name == name)


@dataclass(frozen=True)
class World:
    """Entities, their facts, and one or two passages about each.

    Attributes:
        kinds: kind of each entity, by name.
        facts: value of each relation of each entity.
        passages: by title.
        sources: title of the passage that tells a fact, by (entity, relation).
    """

    part: Part
    kinds: dict[str, Kind]
    facts: dict[str, dict[str, str]]
    passages: dict[str, Passage]
    sources: dict[tuple[str, str], str]

    @classmethod
    def generate(
        cls, *, seed: int, part: Part, entities: int, namesakes: float = 0.4, split: float = 0.0
    ) -> World:
        """Make a world.

        Args:
            seed: the same seed gives the same world.
            part: which part of the name space to draw from.
            entities: number of entities, and so of passages; at least 30.
            namesakes: chance that a new name shares a word with an earlier one of its kind.
            split: chance that an entity's facts are told in two passages, so that finding the
                entity does not mean having found the fact.
        """
        rng = random.Random(f"world-{part}-{seed}")
        kinds = _name_entities(rng, part, entities, namesakes)
        members: dict[str, list[str]] = defaultdict(list)
        for name, kind in kinds.items():
            members[kind].append(name)
        facts: dict[str, dict[str, str]] = {}
        passages: dict[str, Passage] = {}
        sources: dict[tuple[str, str], str] = {}
        for number, (name, kind) in enumerate(kinds.items()):
            facts[name] = {
                relation.name: str(rng.randint(1900, 1999))
                if relation.value == "year"
                else rng.choice([other for other in members[relation.value] if other != name])
                for relation in RELATIONS[kind]
            }
            told = list(RELATIONS[kind])
            # The first relation says what kind of thing this is; the rest come in any order.
            told[1:] = rng.sample(told[1:], len(told) - 1)
            halves = [told]
            if len(told) > 1 and rng.random() < split:
                cut = (len(told) + 1) // 2
                halves = [told[:cut], told[cut:]]
            for half, relations in enumerate(halves):
                title = f"{SECOND}{name}" if half else name
                sentences = [
                    rng.choice(relation.templates).format(s=name, v=facts[name][relation.name])
                    for relation in relations
                ]
                identity = f"{part}-{seed}-{number:05d}-{half}"
                passages[title] = Passage(identity, title, " ".join(sentences))
                sources |= {(name, relation.name): title for relation in relations}
        return cls(part, kinds, facts, passages, sources)

    def questions(self, count: int, *, seed: int, comparisons: float = 0.2) -> list[Question]:
        """Draw ``count`` different questions: 2-, 3- and 4-hop chains, and comparisons."""
        rng = random.Random(f"questions-{self.part}-{seed}")
        drawn: dict[str, Question] = {}
        for _ in range(count * 50):
            if len(drawn) == count:
                return list(drawn.values())
            if rng.random() < comparisons:
                question = self.comparison(rng)
            else:
                question = self.chain_question(rng, hops=rng.choice((2, 2, 3, 3, 4)))
            drawn.setdefault(question.question, question)
        raise ValueError(
            f"a world of {len(self.kinds)} entities has no {count} different questions"
        )

    def chain_question(self, rng: random.Random, *, hops: int) -> Question:
        """A question that follows ``hops`` different relations from one named entity."""
        while True:
            subject = phrase = rng.choice(list(self.kinds))
            text, chain = "", list[Hop]()
            for hop in range(hops):
                last = hop == hops - 1
                used = {link.question for link in chain}
                options = [
                    relation
                    for relation in RELATIONS[self.kinds[subject]]
                    if (last or relation.value != "year") and relation.name not in used
                ]
                if not options:
                    break
                relation = rng.choice(options)
                text = rng.choice(relation.asks).format(phrase)
                phrase = rng.choice(relation.nouns).format(phrase)
                chain.append(self._hop(subject, relation))
                subject = chain[-1].answer
            # A chain that came back to an entity it had left would have a shortcut.
            if len({*(entity_of(link.title) for link in chain), subject}) == hops + 1:
                return self._question(text, subject, f"{hops}hop", tuple(chain))

    def comparison(self, rng: random.Random) -> Question:
        """Two entities compared: which came first, or whether they share a value."""
        kind = rng.choice(("film", "book", "band", "company"))
        pool = [name for name, other in self.kinds.items() if other == kind]
        left = rng.choice(pool)
        if rng.random() < 0.5:
            year = relation_named("year")
            others = [n for n in pool if self.facts[n]["year"] != self.facts[left]["year"]]
            right = rng.choice(others)
            first = min((left, right), key=lambda name: self.facts[name]["year"])
            chain = (self._hop(left, year), self._hop(right, year))
            return self._question(
                f"Which came first, {left} or {right}?", first, "comparison", chain
            )
        relation = rng.choice([r for r in RELATIONS[kind] if r.value != "year"])  # type: ignore[index]
        twins = [
            n
            for n in pool
            if n != left and self.facts[n][relation.name] == self.facts[left][relation.name]
        ]
        right = rng.choice(
            twins if twins and rng.random() < 0.6 else [n for n in pool if n != left]
        )
        same = self.facts[left][relation.name] == self.facts[right][relation.name]
        chain = (self._hop(left, relation), self._hop(right, relation))
        text = f"Do {left} and {right} have the same {relation.name}?"
        return self._question(text, "yes" if same else "no", "comparison", chain)

    def _hop(self, subject: str, relation: Relation) -> Hop:
        value = self.facts[subject][relation.name]
        title = self.sources[subject, relation.name]
        return Hop(relation.name, value, title, relation.statement(subject, value))

    def _question(self, text: str, answer: str, type_: str, chain: tuple[Hop, ...]) -> Question:
        titles = tuple(dict.fromkeys(hop.title for hop in chain))
        return Question(
            id=f"{self.part}-{zlib.crc32(text.encode()):08x}",
            question=text,
            answer=answer,
            type=type_,
            hops=len(chain),
            supporting_titles=titles,
            supporting_ids=tuple(self.passages[title].id for title in titles),
            chain=chain,
            split=self.part,
        )


def _name_entities(rng: random.Random, part: Part, count: int, namesakes: float) -> dict[str, Kind]:
    """Draw ``count`` different names of ``part``, each with its kind."""
    if count < 30:
        raise ValueError("a world needs at least 30 entities")
    pool = words()
    kinds: dict[str, Kind] = {}
    schedule = [kind for kind, share in KIND_SHARES.items() for _ in range(round(share * count))]
    rng.shuffle(schedule)
    by_kind: dict[Kind, list[str]] = defaultdict(list)
    for kind in schedule:
        while True:
            first, second = rng.choice(pool), rng.choice(pool)
            if by_kind[kind] and rng.random() < namesakes:
                model = rng.choice(by_kind[kind]).split()
                first, second = (model[0], second) if rng.random() < 0.5 else (first, model[1])
            name = f"{first} {second}"
            if first != second and name not in kinds and part_of(name) == part:
                break
        kinds[name] = kind
        by_kind[kind].append(name)
    return kinds
