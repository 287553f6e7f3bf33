"""How a teacher was asked, and so how its student must be asked: written once, carried along.

``steper rollout`` writes a ``Setting`` beside its trajectories, ``build`` and ``train`` carry it
on, and a student folder holds it as ``steper.json``. Evaluation and serving read it from there,
so that no one can use another strategy, wording or number of passages by mistake.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from steper.prompts import Template
from steper.strategies import StrategyName
from steper.types import STRICT


@dataclass(frozen=True, slots=True)
class Setting:
    """The protocol of a run.

    Attributes:
        strategy: how searching and writing alternate.
        template: prompt wording and layout.
        k: passages retrieved per search; those already seen are dropped from them.
        max_steps: most steps of a run (the paper's S).
    """

    __pydantic_config__ = STRICT

    strategy: StrategyName
    template: Template
    k: int
    max_steps: int

    def record(self) -> dict[str, Any]:
        """The setting as JSON-able data, without the layout where it is the default.

        So a run made before there were layouts has the same record as one made the same way now:
        it can be resumed, and compared in one report.
        """
        data = asdict(self)
        if self.template.layout == "grouped":
            del data["template"]["layout"]
        return data
