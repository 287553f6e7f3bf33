"""Embeddings: a sentence-transformers model turns queries and passages into vectors of length 1.

Queries and passages may need different prompts ("query: ", "passage: " for the E5 models); a model
that says which in its own configuration is taken at its word. What was used is kept with the
index, with the beginning of one vector, so that queries are never turned by another model.

>>> embedder = Embedder("intfloat/e5-base-v2", query_prompt="query: ")  # doctest: +SKIP
>>> embedder.queries(["Who hosted Hee Haw?"]).shape  # doctest: +SKIP
(1, 768)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from steper.errors import SteperError
from steper.prose import whole
from steper.retrieval.info import REBUILD, EmbedderInfo, needs
from steper.retrieval.passages import PassageFile, searched
from steper.store import read_json, write_json
from steper.types import Passage

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Array = NDArray[np.float32]

_PROBE_NUMBERS = 16
PROBE_TOLERANCE = 0.05
"""Half precision and other hardware differ by less than this share, other models by more."""

_CPU_BATCH, _GPU_BATCH = 16, 128
"""Texts at once. On CPUs 16 passages were faster than 32 or 64: less padding, warmer caches."""

_WINDOW, _CALL = 512, 64
"""Passages that are sorted by length and written at once; passages given to the model at once."""

PARTIAL = ("vectors.partial", "partial.json")
"""Files of vectors made so far, and of whom; whoever finishes the index deletes them."""

_CHARACTERS_PER_TOKEN, _MOST_TOKENS = 16, 8192


class Embedder:
    """A model that makes vectors. Several threads may use it; they take turns.

    Attributes:
        model: folder or hub id.
        dimensions: numbers of a vector.
        query_prompt: text put before every query.
        passage_prompt: text put before every passage.
    """

    def __init__(
        self,
        model: str,
        *,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        device: str = "",
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub id.
            query_prompt: ``None`` for what the model's own configuration says.
            passage_prompt: likewise.
            device: a torch device; empty for a GPU where there is one.

        Raises:
            SteperError: if the model cannot be loaded, or is not whole.
        """
        self._loaded = _load(model, device)
        self.model = model
        own = {name: text or "" for name, text in self._loaded.prompts.items()}
        names = ("document", "passage", "corpus")
        theirs = next((own[name] for name in names if own.get(name)), "")
        self.query_prompt = own.get("query", "") if query_prompt is None else query_prompt
        self.passage_prompt = theirs if passage_prompt is None else passage_prompt
        self._on_cpu = self._loaded.device.type == "cpu"
        self._characters = most_characters(self._loaded.max_seq_length)
        self._lock = Lock()
        self.dimensions = self.queries(["dimensions"]).shape[1]

    def queries(self, texts: Sequence[str]) -> Array:
        """The vectors of queries: (queries, dimensions), each of length 1.

        What is longer than the model reads is cut. On a CPU, queries go through the model one by
        one: in a batch, padding changes the last digits, and near ties would fall now this way,
        now that, depending on who else asks at the time.
        """
        inputs = [plain(text, self._characters) for text in texts]
        batch = 1 if self._on_cpu else _GPU_BATCH
        with self._lock:
            vectors = self._loaded.encode_query(
                inputs, prompt=self.query_prompt, batch_size=batch, show_progress_bar=False
            )
        return _unit(np.asarray(vectors), self.model)

    def passages(self, passages: Sequence[Passage]) -> Array:
        """The vectors of passages: (passages, dimensions), each of length 1."""
        inputs = [plain(searched(passage), self._characters) for passage in passages]
        batch = _CPU_BATCH if self._on_cpu else _GPU_BATCH
        with self._lock:
            vectors = self._loaded.encode_document(
                inputs, prompt=self.passage_prompt, batch_size=batch, show_progress_bar=False
            )
        return _unit(np.asarray(vectors), self.model)

    def info(self, first: Passage) -> EmbedderInfo:
        """What is kept with an index whose first passage is ``first``."""
        probe = self.passages([first])[0, :_PROBE_NUMBERS]
        return EmbedderInfo(
            model=self.model,
            dimensions=self.dimensions,
            query_prompt=self.query_prompt,
            passage_prompt=self.passage_prompt,
            probe=tuple(float(number) for number in probe),
        )

    @classmethod
    def from_info(cls, info: EmbedderInfo, first: Passage | None, *, device: str = "") -> Self:
        """Load the model an index was built with.

        Args:
            info: what the index says of it.
            first: the first passage of the index, to make sure; ``None`` trusts the name.
            device: as for ``Embedder``.

        Raises:
            SteperError: if the model of that name is not there, or is another one by now.
        """
        embedder = cls(
            info.model,
            query_prompt=info.query_prompt,
            passage_prompt=info.passage_prompt,
            device=device,
        )
        embedder.check(info, first)
        return embedder

    def check(self, info: EmbedderInfo, first: Passage | None) -> None:
        """Make sure that this is the model an index was built with.

        Raises:
            SteperError: naming both, if it is not.
        """
        same = self.dimensions == info.dimensions and (
            self.query_prompt,
            self.passage_prompt,
        ) == (info.query_prompt, info.passage_prompt)
        if same and first is not None:
            same = close(np.array(self.info(first).probe), np.array(info.probe))
        if not same:
            raise SteperError(
                f"the index was built with the embedding model {info.model} "
                f"({info.dimensions} dimensions, prompts {info.query_prompt!r} and "
                f"{info.passage_prompt!r}); {self.model} as it is now ({self.dimensions} "
                f"dimensions, prompts {self.query_prompt!r} and {self.passage_prompt!r}) gives "
                "other vectors.",
                where=self.model,
                fix=f"Put the model back that was there. Else: {REBUILD[0].lower()}{REBUILD[1:]}",
            )


class VectorFile:
    """Vectors made so far, one row a passage, in a file that outlives a kill.

    Windows are embedded whole and always cut alike, so that the padding of a batch, and with it a
    vector's last digits, do not depend on where a kill fell.
    """

    def __init__(
        self, folder: Path, embedder: Embedder, *, dtype: np.dtype[Any], corpus_sha256: str
    ) -> None:
        self._path, self._key_path = (folder / name for name in PARTIAL)
        self._embedder = embedder
        self._dtype, self._row_bytes = dtype, dtype.itemsize * embedder.dimensions
        self._key = {
            "corpus_sha256": corpus_sha256,
            "model": embedder.model,
            "dimensions": embedder.dimensions,
            "query_prompt": embedder.query_prompt,
            "passage_prompt": embedder.passage_prompt,
            "dtype": dtype.name,
        }

    def complete(self, passages: PassageFile) -> NDArray[Any]:
        """Embed what is missing; then all rows, mapped: (passages, dimensions)."""
        from tqdm import tqdm

        done = self._usable(passages)
        with (
            self._path.open("ab") as file,
            tqdm(total=len(passages), initial=done, unit=" passages", desc="embed") as bar,
        ):
            for begin in range(done, len(passages), _WINDOW):
                end = min(begin + _WINDOW, len(passages))
                window = list(passages.iterate(begin, end))
                file.write(self._embed(window, bar.update).tobytes())
                file.flush()
                os.fsync(file.fileno())
        return self._rows(len(passages))

    def _usable(self, passages: PassageFile) -> int:
        """How many rows can be kept; the file is cut to them, or begun."""
        done = 0
        if self._path.exists() and self._key_path.exists():
            rows = self._path.stat().st_size // self._row_bytes
            whole = len(passages) if rows >= len(passages) else rows // _WINDOW * _WINDOW
            if whole and read_json(self._key_path) == self._key:
                # The model of that name may have been replaced meanwhile.
                ours = self._embedder.passages(passages[:1])[0]
                done = whole if close(ours, self._rows(1)[0].astype(np.float32)) else 0
        if not done:
            self._path.write_bytes(b"")
            write_json(self._key_path, self._key)
        os.truncate(self._path, done * self._row_bytes)
        return done

    def _rows(self, count: int) -> NDArray[Any]:
        shape = (count, self._embedder.dimensions)
        return np.memmap(self._path, dtype=self._dtype, mode="r", shape=shape)

    def _embed(self, window: list[Passage], report: Callable[[int], Any]) -> NDArray[Any]:
        """The rows of a window. Texts of like length go together: less padding, twice as fast."""
        order = sorted(range(len(window)), key=lambda i: len(searched(window[i])))
        rows = np.empty((len(window), self._embedder.dimensions), dtype=self._dtype)
        for begin in range(0, len(order), _CALL):
            chosen = order[begin : begin + _CALL]
            rows[chosen] = self._embedder.passages([window[i] for i in chosen])
            report(len(chosen))
        return rows


def close(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> bool:
    """Whether two vectors of one text come from the same model."""
    if ours.shape != theirs.shape:
        return False
    return bool(np.linalg.norm(ours - theirs) <= PROBE_TOLERANCE * np.linalg.norm(theirs))


def plain(text: str, characters: int) -> str:
    """At most that many characters of a text, and only such as a tokenizer takes."""
    return whole(text.strip()[:characters])


def most_characters(tokens: int | None) -> int:
    """How many characters of a text can matter to a model that reads so many tokens.

    Tokenizing a megabyte only to cut it takes half a second. A token has four or five characters
    in most languages; 16 leave room.
    """
    return _CHARACTERS_PER_TOKEN * min(tokens or _MOST_TOKENS, _MOST_TOKENS)


def _unit(vectors: NDArray[np.floating], model: str) -> Array:
    """Rows scaled to length 1, so that inner products are cosines."""
    rows = vectors.astype(np.float32)
    if not np.isfinite(rows).all():
        raise SteperError(
            "the model gave vectors that are not numbers.",
            where=model,
            fix="Its weights may be damaged, or too coarse for this device; try another model.",
        )
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    unit: Array = (rows / lengths).astype(np.float32)
    return unit


def _load(model: str, device: str) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise needs("dense", "Dense retrieval") from None
    try:
        loaded: SentenceTransformer = SentenceTransformer(model, device=device or None)
        tokenizer = loaded.tokenizer
    except Exception as error:  # of any of five libraries; each has its own
        raise unloadable("embedding model", model, device, error) from None
    special = getattr(tokenizer, "all_special_tokens", ())
    if special and len(tokenizer) <= len(special):
        # transformers loads a folder without tokenizer files all the same.
        raise SteperError(
            "the embedding model's tokenizer knows no words, so all texts would be alike.",
            where=model,
            fix="Its tokenizer files may be missing; download the model again.",
        )
    return loaded


def unloadable(what: str, model: str, device: str, error: Exception) -> SteperError:
    """The error for a model that sentence-transformers could not load."""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    kind = "folder" if Path(model).exists() else "name"
    return SteperError(
        f"no {what} could be loaded from this {kind}"
        f"{f' (device {device})' if device else ''}: {reason[0]}",
        where=model,
        fix="Give a folder with a sentence-transformers model, or a hub id where the hub can be "
        "reached or has been before.",
    )
