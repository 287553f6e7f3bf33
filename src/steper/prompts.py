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

from steper.protocols import ANSWER_CUE, Turn
from steper.types import STRICT, Passage, PromptLayout

__all__ = ["ANSWER_CUE", "Demonstration", "Template", "answer_sentence", "parse_answer"]


@dataclass(frozen=True, slots=True)
class DemonstrationStep:
    """One step of a worked example: the passages it brought, and the sentence written to them."""

    __pydantic_config__ = STRICT

    reasoning: str
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked example (few-shot), shown before the question in the same wording and layout."""

    __pydantic_config__ = STRICT

    question: str
    steps: tuple[DemonstrationStep, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The wording around question, passages and reasoning.

    Attributes:
        instruction: first lines of the prompt; may be empty.
        passage: how one passage is shown, with ``{title}`` and ``{text}``.
        layout: whether passages and reasoning stand apart or alternate, step by step.
        question_label: what stands before the question.
        reasoning_label: the line after which the model writes.
        answer_cue: a sentence containing this ends the run.
        search_cue: in a sentence, what stands before the query of the next search; only the
            strategies that let the model choose its queries read it.
        nudge: what a user says to get the next sentence, where an assistant's turn cannot be
            continued.
        nudge_final: what a user says there to get the answer.
        examples: worked examples.
    """

    __pydantic_config__ = STRICT

    instruction: str
    passage: str
    layout: PromptLayout = "grouped"
    question_label: str = "Question: "
    reasoning_label: str = "Reasoning:"
    answer_cue: str = ANSWER_CUE
    search_cue: str = "Search:"
    nudge: str = "Write the next sentence, and nothing else."
    nudge_final: str = "Write the answer, as short as possible, and nothing else."
    examples: tuple[Demonstration, ...] = ()

    def laid_out(self, layout: PromptLayout | None) -> Template:
        """The same wording in another layout; as it is for ``None``."""
        return replace(self, layout=layout or self.layout)

    def bare(self) -> Template:
        """The same wording without worked examples: a student learns from its training instead."""
        return replace(self, examples=())

    def render(
        self,
        question: str,
        passages: Sequence[Sequence[Passage]],
        reasoning: Sequence[str],
        *,
        final: bool = False,
    ) -> str:
        """The prompt of a step as plain text; see ``turns``."""
        return "".join(t.text for t in self.turns(question, passages, reasoning, final=final))

    def turns(
        self,
        question: str,
        passages: Sequence[Sequence[Passage]],
        reasoning: Sequence[str],
        *,
        final: bool = False,
    ) -> tuple[Turn, ...]:
        """The prompt of a step: it ends where the model is to write the next sentence.

        Args:
            question: the question's text.
            passages: P_1 … P_s, the new passages of each step in retrieval order. A step without
                new passages is an empty entry.
            reasoning: the sentences R<s already written. Where the layout is interleaved, they are
                one fewer than ``passages``, because a turn without its sentence would be open.
            final: whether to ask for the answer now, by writing the answer cue for the model.

        Returns:
            The instruction as the system's turn, then the user's and the assistant's by turns; the
            last is the assistant's, under way.

        Raises:
            ValueError: if the sentences of an interleaved prompt are not as many.
        """
        run = self._run(question, self._steps(passages, [*reasoning, None]))
        return (*self._opening(), *run[:-1], Turn("assistant", run[-1].text + self._cue(final)))

    def matches(self, prompt: str) -> bool:
        """Whether a prompt may have been rendered by this wording in this layout.

        Told by its opening and its ending; passages are not looked at. A prompt without reasoning
        matches both layouts, because the first step's prompt is the same in both.
        """
        opening = "".join(turn.text for turn in self._opening()) + self.question_label
        rest = prompt.removeprefix(opening).removesuffix(self.answer_cue)
        asked = f"\n{self.reasoning_label}\n"
        if self.layout == "grouped":
            fits = asked in rest and rest.endswith("\n")
        else:
            fits = rest.endswith(asked)
        return prompt.startswith(opening) and fits

    def _cue(self, final: bool) -> str:
        return self.answer_cue if final else ""

    def _opening(self) -> list[Turn]:
        """What every prompt begins with: the instruction and the worked examples."""
        turns = [Turn("system", f"{self.instruction}\n")] if self.instruction else []
        for example in self.examples:
            reasoning = [step.reasoning for step in example.steps]
            passages = [step.passages for step in example.steps]
            shown = self._run(example.question, self._steps(passages, reasoning))
            # An empty line ends an example.
            turns += [*shown[:-1], Turn("assistant", f"{shown[-1].text}\n")]
        return turns

    def _run(self, question: str, steps: _Steps) -> list[Turn]:
        """The user's and the assistant's turns about one question."""
        turns: list[Turn] = []
        for new, sentences in steps:
            lines = [] if turns else [f"{self.question_label}{one_line(question)}"]
            lines += [
                self.passage.format(title=one_line(p.title), text=one_line(p.text)) for p in new
            ]
            lines.append(self.reasoning_label)
            turns.append(Turn("user", "".join(f"{line}\n" for line in lines)))
            written = "".join(f"{one_line(sentence)}\n" for sentence in sentences)
            turns.append(Turn("assistant", written))
        return turns

    def _steps(
        self, passages: Sequence[Sequence[Passage]], reasoning: Sequence[str | None]
    ) -> _Steps:
        """Passages and the sentences that follow them, all at once or step by step.

        ``None`` stands for the sentence that is still to be written.
        """
        if self.layout == "grouped":
            return [(tuple(chain.from_iterable(passages)), [s for s in reasoning if s is not None])]
        written = [() if sentence is None else (sentence,) for sentence in reasoning]
        return list(zip(passages, written, strict=True))


_Steps = list[tuple[Sequence[Passage], Sequence[str]]]


def one_line(text: str) -> str:
    """Fold white space, so that a newline always ends a sentence."""
    return " ".join(text.split())


def answer_sentence(answer: str, *, cue: str = ANSWER_CUE) -> str:
    """The sentence that gives an answer.

    >>> answer_sentence("Hee Haw")
    'So the answer is: Hee Haw.'
    """
    return f"{cue} {answer}."


def parse_answer(sentence: str, *, cue: str = ANSWER_CUE) -> str | None:
    """The answer a sentence gives, ``None`` where it gives none.

    >>> parse_answer("So the answer is: Hee Haw.")
    'Hee Haw'
    """
    _, found, rest = sentence.partition(cue)
    if not found:
        return None
    answer = one_line(rest)
    # One full stop is the sentence's own; "Samuel L. Jackson Jr.." keeps its "Jr.".
    return answer.removesuffix(".")


def parse_query(sentence: str, *, cue: str) -> str | None:
    """The query a sentence asks for, ``None`` where it asks for none.

    >>> parse_query("Jim Halsey managed Roy Clark. Search: Roy Clark variety show", cue="Search:")
    'Roy Clark variety show'
    """
    _, _, query = sentence.partition(cue)
    return one_line(query) or None


def statement_of(sentence: str, *, cue: str) -> str:
    """What a sentence states, without the query it asks for; ``cue`` may be empty.

    >>> statement_of("Jim Halsey managed Roy Clark. Search: Roy Clark variety show", cue="Search:")
    'Jim Halsey managed Roy Clark.'
    """
    return sentence.partition(cue)[0].strip() if cue else sentence


def first_sentence(text: str) -> str:
    """The one new sentence of a step: the first line that holds anything."""
    return next((one_line(line) for line in text.splitlines() if line.strip()), "")
