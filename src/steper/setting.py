"""How a teacher was asked, and so how its student must be asked: written once, carried along.

``steper rollout`` writes a ``Setting`` beside its trajectories, ``build`` and ``train`` carry it
on, and a student folder holds it as ``steper.json``. Evaluation and serving read it from there,
so that no one can use another strategy, wording or number of passages by mistake.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from steper.prompts import Template
from steper.protocols import Strategy
from steper.strategies import build_strategy
from steper.strategies.limits import Limits
from steper.types import STRICT, StrategyName


@dataclass(frozen=True, slots=True)
class Setting:
    """The protocol of a run.

    Attributes:
        strategy: how searching and writing alternate.
        template: prompt wording and layout.
        k: passages retrieved per search; those already seen are dropped from them.
        max_steps: most steps of a run (the paper's S).
        max_passages: most passages of a run, 0 for no limit.
        max_run_tokens: most tokens read and written in a run, 0 for no limit.
        early_stop: whether a repeated sentence makes the answer be asked for.
        force_search: whether every step searches where the model may choose not to.
    """

    __pydantic_config__ = STRICT

    strategy: StrategyName
    template: Template
    k: int
    max_steps: int
    max_passages: int = 0
    max_run_tokens: int = 0
    early_stop: bool = False
    force_search: bool = False

    def build_strategy(self) -> Strategy:
        """The strategy of this setting."""
        limits = Limits(
            max_steps=self.max_steps,
            max_passages=self.max_passages,
            max_tokens=self.max_run_tokens,
            early_stop=self.early_stop,
            answer_cue=self.template.answer_cue,
        )
        return build_strategy(
            self.strategy,
            limits,
            search_cue=self.template.search_cue,
            force_search=self.force_search,
        )

    @property
    def chooses_queries(self) -> bool:
        """Whether the model says itself what to search for."""
        return self.strategy in ("self-ask", "interleaved")

    def record(self) -> dict[str, Any]:
        """The setting as JSON-able data, without whatever has its default.

        So a run made before an option existed has the same record as one made the same way now:
        it can be resumed, and compared in one report.
        """
        return _shortened(self) | {"template": _shortened(self.template)}


def _shortened(record: Any) -> dict[str, Any]:
    """A dataclass as a dictionary, without the fields that have their default."""
    data = asdict(record)
    for field in fields(record):
        if field.default is not MISSING and getattr(record, field.name) == field.default:
            del data[field.name]
    return data
