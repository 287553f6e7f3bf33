"""Reranking: a cross-encoder reads query and passage together and orders the best anew.

It is far more exact than comparing vectors made apart, and far slower, so it is shown only the
first ``depth`` passages of another index.

>>> index = Reranked(info, index, model="cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
>>> index.search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steper.errors import SteperError
from steper.retrieval.embedding import PROBE_TOLERANCE, most_characters, plain, unloadable
from steper.retrieval.info import REBUILD, Index, IndexInfo, check_request, needs
from steper.retrieval.passages import searched
from steper.types import Passage

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_BATCH = 32
"""Pairs at once; sentence-transformers sorts all of them by length first."""


_DIGITS = 4
"""Of a score: those after depend on the batch, even where query and passage are equal."""


class Reranked:
    """An index whose best passages a cross-encoder orders. Safe with threads if the index is.

    Attributes:
        info: what the index is made of; its ``reranker`` says how many passages are ordered.
        index: where the passages come from.
    """

    def __init__(
        self,
        info: IndexInfo,
        index: Index,
        *,
        model: str | CrossEncoder | None = None,
        device: str = "",
    ) -> None:
        """Load the cross-encoder.

        Args:
            info: with a ``reranker``.
            index: what is reranked.
            model: folder, hub id or loaded model; by default the one the info names.
            device: a torch device; empty for a GPU where there is one.

        Raises:
            SteperError: if the model cannot be loaded, or gives more than one score for a pair.
        """
        if info.reranker is None:
            raise ValueError("the info names no reranker")
        self.info, self.index = info, index
        self._name, self._depth = info.reranker.model, info.reranker.depth
        model = self._name if model is None else model
        self._model = load_reranker(model, device) if isinstance(model, str) else model
        score = probe_of(self._model, self._name)
        known = info.reranker.probe
        if known is not None and abs(score - known) > PROBE_TOLERANCE * max(1.0, abs(known)):
            raise SteperError(
                f"is another model than the one the index was made with, whose score for a fixed "
                f"pair was {known:.3f}, and not {score:.3f}.",
                where=self._name,
                fix=f"Put the former model back. Else: {REBUILD[0].lower()}{REBUILD[1:]}",
            )
        self._characters = most_characters(self._model.max_seq_length)
        self._lock = Lock()

    def __len__(self) -> int:
        return self.info.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages, best first.

        The index's first ``depth`` passages are ordered by the cross-encoder, equal scores (to
        four digits) as the index had them; where ``k`` is greater, the others follow as they came.

        Raises:
            SteperError: if ``k`` is less than 1.
        """
        check_request(queries, k)
        found = self.index.search(queries, max(k, self._depth))
        shown = [passages[: self._depth] for passages in found]
        pairs = [
            (plain(query, self._characters), plain(searched(passage), self._characters))
            for query, passages in zip(queries, shown, strict=True)
            for passage in passages
        ]
        scores = iter(self._scores(pairs))
        ranked = []
        for passages, head in zip(found, shown, strict=True):
            # sorted is stable: equal scores stay as the index had them.
            scored = sorted(
                zip(islice(scores, len(head)), head, strict=True), key=lambda pair: -pair[0]
            )
            ranked.append([*(passage for _, passage in scored), *passages[len(head) :]][:k])
        return ranked

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        """One score for each pair of texts."""
        if not pairs:
            return []
        from torch.nn import Identity

        with self._lock:
            # Identity: after the usual sigmoid, all good passages would have a score of 1.0.
            scores: NDArray[np.float32] = self._model.predict(
                pairs, batch_size=_BATCH, activation_fn=Identity(), show_progress_bar=False
            )
        if not np.isfinite(scores).all():
            raise SteperError(
                "the cross-encoder gave scores that are not numbers.",
                where=self._name,
                fix="Its weights may be damaged, or too coarse for this device; try another model.",
            )
        return [round(float(score), _DIGITS) for score in scores]


_PROBE = ("Who hosted Hee Haw?", "Roy Clark hosted the country variety show Hee Haw.")


def probe_of(model: CrossEncoder, name: str) -> float:
    """A model's score for a fixed pair.

    Raises:
        SteperError: if it gives more than one score for a pair.
    """
    from torch.nn import Identity

    if model.num_labels != 1:
        raise SteperError(
            f"gives {model.num_labels} scores for a query and a passage, not one.",
            where=name,
            fix="Give one made for ranking, as cross-encoder/ms-marco-MiniLM-L6-v2.",
        )
    (score,) = model.predict([_PROBE], activation_fn=Identity(), show_progress_bar=False)
    return float(score)


def load_reranker(model: str, device: str) -> CrossEncoder:
    """Load a cross-encoder.

    Raises:
        SteperError: if there is none of that name.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise needs("dense", "Reranking") from None
    try:
        loaded: CrossEncoder = CrossEncoder(model, device=device or None)
    except Exception as error:  # of any of five libraries; each has its own
        raise unloadable("cross-encoder", model, device, error) from None
    _refuse_random(loaded, model)
    return loaded


_CLASSIFIER = "ForSequenceClassification"


def _refuse_random(loaded: CrossEncoder, model: str) -> None:
    """Refuse a model without an output layer: it would get random weights, others at each start.

    Raises:
        SteperError: if the checkpoint holds none, as that of an embedding model.
    """
    saved = getattr(getattr(loaded.model, "config", None), "architectures", None) or ()
    if type(loaded.model).__name__.endswith(_CLASSIFIER) and not any(
        name.endswith(_CLASSIFIER) for name in saved
    ):
        raise SteperError(
            f"is no cross-encoder: what was saved ({', '.join(saved) or 'of no stated kind'}) "
            "scores no pairs of texts.",
            where=model,
            fix="Give one made for ranking, as cross-encoder/ms-marco-MiniLM-L6-v2.",
        )
