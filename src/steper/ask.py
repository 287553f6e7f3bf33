"""`steper ask`: one question, each step printed as it happens."""

from __future__ import annotations

from collections.abc import Callable

from steper.accounts import Purse
from steper.config import AskConfig
from steper.driver import run
from steper.models import build_lm, default_setting, taught_setting
from steper.retrieval.indexes import open_index
from steper.types import Question, Step, Trajectory


def ask(config: AskConfig, *, show: Callable[[str], None] = print) -> Trajectory:
    """Answer one question and return its trajectory.

    Args:
        config: question, model, index.
        show: receives each line of the display.

    Raises:
        SteperError: if the model or the index cannot be opened.
    """
    setting = taught_setting(config.model, config.setting) or default_setting()
    question = Question(id="question", question=config.question, answer="")
    number = 0

    def show_step(_: Question, step: Step) -> None:
        nonlocal number
        number += 1
        show(f"Step {number}" + (f"  search: {step.query}" if step.query else ""))
        for passage in step.passages:
            show(f"  + {passage.title}")
        show(f"  {step.reasoning}")

    retriever = open_index(config.index)
    lm = build_lm(
        config.model,
        config.model_copy(update={"cache": config.cache or "none"}),
        purse=Purse(config.budget),
    )
    (trajectory,) = run([question], setting=setting, retriever=retriever, lm=lm, on_step=show_step)
    show(f"Answer: {trajectory.answer or '(none within the allowed steps)'}")
    return trajectory
