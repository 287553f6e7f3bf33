"""Choose the best of several sentences drawn for one step: no model, no labels, no I/O.

The rules, each deciding only where the ones before it leave a tie: something is written; it was
not written before; it names nothing that stands neither in the question nor in what was read or
written so far; most of the other sentences say the same; it comes first.

>>> choose(["", "He sang.", "He hosted Hee Haw.", "He hosted Hee Haw!"], said=["He sang."],
...        sources=["Who hosted Hee Haw?"])
2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from steper.grounding import Ground
from steper.metrics import normalize


def choose(candidates: Sequence[str], *, said: Sequence[str], sources: Sequence[str]) -> int:
    """The index of the best candidate.

    Args:
        candidates: sentences drawn for one step, at least one.
        said: the sentences of the earlier steps.
        sources: what a sentence may draw from: question, passages, earlier sentences.
    """
    votes = Counter(normalize(candidate) for candidate in candidates)
    before = {normalize(sentence) for sentence in said}
    foreign = {candidate: _foreign(candidate, said, sources) for candidate in {*candidates}}

    def rank(index: int) -> tuple[bool, bool, int, int]:
        candidate = candidates[index]
        words = normalize(candidate)
        return bool(words), words not in before, -foreign[candidate], votes[words]

    return max(range(len(candidates)), key=rank)


def _foreign(candidate: str, said: Sequence[str], sources: Sequence[str]) -> int:
    """How many names, quoted titles and numbers of a sentence no source says."""
    ground = Ground(sources)
    for sentence in said:  # their numbers may be added or subtracted, as for an age
        ground.missing(sentence)
    return len(ground.missing(candidate))
