"""Render the prompt of a step, and read what the model wrote.

The layout is *grouped*, the paper's: question, then every passage in retrieval order, then the
reasoning, one sentence a line. Nothing is ever re-sorted, so the prompt of step s + 1 repeats the
prompt of step s up to its last passage, and a server's prefix cache hits.

>>> template = Template(instruction="", passage="Passage: {title}. {text}")
>>> print(template.render("Who?", [Passage("1", "Roy Clark", "A musician.")], ["He sang."]))
Question: Who?
Passage: Roy Clark. A musician.
Reasoning:
He sang.
<BLANKLINE>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.types import STRICT, Passage

ANSWER_CUE = "So the answer is:"
"""A sentence containing this ends the run."""


@dataclass(frozen=True, slots=True)
class Template:
    """The wording around question, passages and reasoning.

    Attributes:
        instruction: first lines of the prompt; may be empty.
        passage: how one passage is shown, with ``{title}`` and ``{text}``.
    """

    __pydantic_config__ = STRICT

    instruction: str
    passage: str

    def render(
        self,
        question: str,
        passages: Sequence[Passage],
        reasoning: Sequence[str],
        *,
        final: bool = False,
    ) -> str:
        """The prompt of a step: it ends where the model is to write the next sentence.

        Args:
            question: the question's text.
            passages: P≤s in retrieval order.
            reasoning: the sentences R<s already written.
            final: whether to ask for the answer now, by writing the answer cue for the model.
        """
        lines = [self.instruction] if self.instruction else []
        lines.append(f"Question: {one_line(question)}")
        lines += [
            self.passage.format(title=one_line(p.title), text=one_line(p.text)) for p in passages
        ]
        lines.append("Reasoning:")
        lines += [one_line(sentence) for sentence in reasoning]
        return "\n".join(lines) + "\n" + (ANSWER_CUE if final else "")


def one_line(text: str) -> str:
    """Fold white space, so that a newline always ends a sentence."""
    return " ".join(text.split())


def answer_sentence(answer: str) -> str:
    """The sentence that gives an answer.

    >>> answer_sentence("Hee Haw")
    'So the answer is: Hee Haw.'
    """
    return f"{ANSWER_CUE} {answer}."


def parse_answer(sentence: str) -> str | None:
    """The answer a sentence gives, ``None`` where it gives none.

    >>> parse_answer("So the answer is: Hee Haw.")
    'Hee Haw'
    """
    _, cue, rest = sentence.partition(ANSWER_CUE)
    if not cue:
        return None
    answer = one_line(rest)
    # One full stop is the sentence's own; "Samuel L. Jackson Jr.." keeps its "Jr.".
    return answer.removesuffix(".")


def first_sentence(text: str) -> str:
    """The one new sentence of a step: the first line that holds anything."""
    return next((one_line(line) for line in text.splitlines() if line.strip()), "")
