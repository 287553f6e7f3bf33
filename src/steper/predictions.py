"""An evaluation's answers as a file for the data set's official script.

What such a script says of the answers is meaningful: EM and F1, which are ours, precision and
recall. What it says of evidence is not: a run retrieves passages and names no sentences, paragraph
numbers or triples, so these are empty rather than guessed, and ``sp_*``, ``evi_*``, ``joint_*`` and
``support_f1`` come out as 0. Only answerable questions are asked (MuSiQue-Ans), so all are
predicted to be answerable.

The scripts want all questions of the file. Those that were left out or failed count as wrong by
HotpotQA's and 2WikiMultiHopQA's; MuSiQue's, which also wants the file's order, refuses.

>>> write_predictions(Path("runs/eval"), {"q1": "Hee Haw"}, rules="hotpotqa")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from steper.metrics import Rules
from steper.store import write_json, write_records


def write_predictions(folder: Path, answers: Mapping[str, str], *, rules: Rules) -> None:
    """Write ``predictions.json``, for MuSiQue ``predictions.jsonl``, into the folder.

    Args:
        folder: where to.
        answers: by the question's id, as it is in the official file and in that file's order.
        rules: whose script is to read it.
    """
    nothing: dict[str, list[object]] = {id_: [] for id_ in answers}
    found: dict[str, Mapping[str, object]] = {"answer": answers, "sp": nothing}
    match rules:
        case "hotpotqa":
            write_json(folder / "predictions.json", found)
        case "2wikimultihopqa":
            write_json(folder / "predictions.json", found | {"evidence": nothing})
        case "musique":
            rows = (
                {
                    "id": id_,
                    "predicted_answer": answer,
                    "predicted_support_idxs": [],
                    "predicted_answerable": True,
                }
                for id_, answer in answers.items()
            )
            write_records(folder / "predictions.jsonl", rows)
        case _:
            assert_never(rules)
