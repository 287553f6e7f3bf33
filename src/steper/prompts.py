"""Render the prompt of a step, and read what the model wrote.

There are two layouts. Nothing is ever re-sorted in either, so a server's prefix cache hits.

- *grouped*, the paper's: question, then every passage in retrieval order, then the reasoning, one
  sentence a line. The prompt of step s + 1 repeats that of step s up to its last passage.
- *interleaved*: every step is a turn, its new passages and then its sentence. The prompt of step
  s + 1 begins with the prompt of step s, r_s and a newline, so a trajectory is one text.

>>> steps = [[Passage("1", "Roy Clark", "A musician.")], [Passage("2", "Hee Haw", "A show.")]]
>>> template = Template(instruction="", passage="Passage: {title}. {text}")
>>> print(template.render("Who?", steps, ["He sang."]))
Question: Who?
Passage: Roy Clark. A musician.
Passage: Hee Haw. A show.
Reasoning:
He sang.
<BLANKLINE>
>>> print(template.laid_out("interleaved").render("Who?", steps, ["He sang."]))
Question: Who?
Passage: Roy Clark. A musician.
Reasoning:
He sang.
Passage: Hee Haw. A show.
Reasoning:
<BLANKLINE>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from steper.types import STRICT, Passage, PromptLayout

ANSWER_CUE = "So the answer is:"
"""A sentence containing this ends the run."""

QUESTION = "Question: "
REASONING = "Reasoning:"


@dataclass(frozen=True, slots=True)
class Template:
    """The wording around question, passages and reasoning.

    Attributes:
        instruction: first lines of the prompt; may be empty.
        passage: how one passage is shown, with ``{title}`` and ``{text}``.
        layout: whether passages and reasoning stand apart or alternate, step by step.
    """

    __pydantic_config__ = STRICT

    instruction: str
    passage: str
    layout: PromptLayout = "grouped"

    def laid_out(self, layout: PromptLayout | None) -> Template:
        """The same wording in another layout; as it is for ``None``."""
        return replace(self, layout=layout or self.layout)

    def render(
        self,
        question: str,
        passages: Sequence[Sequence[Passage]],
        reasoning: Sequence[str],
        *,
        final: bool = False,
    ) -> str:
        """The prompt of a step: it ends where the model is to write the next sentence.

        Args:
            question: the question's text.
            passages: P_1 … P_s, the new passages of each step in retrieval order. A step without
                new passages is an empty entry.
            reasoning: the sentences R<s already written. Where the layout is interleaved, they are
                one fewer than ``passages``, because a turn without its sentence would be open.
            final: whether to ask for the answer now, by writing the answer cue for the model.

        Raises:
            ValueError: if the sentences of an interleaved prompt are not as many.
        """
        lines = [f"{self._opening()}{one_line(question)}"]
        for new, sentences in self._turns(passages, reasoning):
            lines += [
                self.passage.format(title=one_line(p.title), text=one_line(p.text)) for p in new
            ]
            lines.append(REASONING)
            lines += [one_line(sentence) for sentence in sentences]
        return "\n".join(lines) + "\n" + (ANSWER_CUE if final else "")

    def matches(self, prompt: str) -> bool:
        """Whether a prompt may have been rendered by this wording in this layout.

        Told by its opening and its ending; passages are not looked at. A prompt without reasoning
        matches both layouts, because the first step's prompt is the same in both.
        """
        opening = self._opening()
        rest = prompt.removeprefix(opening).removesuffix(ANSWER_CUE)
        asked = f"\n{REASONING}\n"
        if self.layout == "grouped":
            fits = asked in rest and rest.endswith("\n")
        else:
            fits = rest.endswith(asked)
        return prompt.startswith(opening) and fits

    def _opening(self) -> str:
        """What every prompt begins with."""
        return f"{self.instruction}\n{QUESTION}" if self.instruction else QUESTION

    def _turns(
        self, passages: Sequence[Sequence[Passage]], reasoning: Sequence[str]
    ) -> list[tuple[Sequence[Passage], Sequence[str]]]:
        """Passages and the sentences that follow them: all at once, or step by step."""
        if self.layout == "grouped":
            return [(tuple(chain.from_iterable(passages)), reasoning)]
        written: list[Sequence[str]] = [(sentence,) for sentence in reasoning]
        return list(zip(passages, [*written, ()], strict=True))


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
