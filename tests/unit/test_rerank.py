"""Reranking: the order is the cross-encoder's own, within the depth and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from models import tiny_tokenizer
from steper.errors import SteperError
from steper.retrieval.info import FORMAT_VERSION, IndexInfo, RerankerInfo
from steper.retrieval.passages import searched
from steper.retrieval.rerank import Reranked
from steper.types import Passage

pytest.importorskip("sentence_transformers", reason="needs pip install 'steper[dense]'")

LINE = "Roy Clark hosted the country variety show Hee Haw and sang of Tulsa"
WORDS = LINE.split()
PASSAGES = [
    Passage(str(n), WORDS[n % 13], " ".join(WORDS[n * i % 13] for i in range(1, 4 + n)))
    for n in range(20)
]
QUERIES = ["Who hosted Hee Haw?", "Tulsa", "a country song " * 9]


def save_cross_encoder(folder: Path, *, labels: int = 1) -> str:
    """Write a tiny BERT with random weights that scores pairs of texts."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer([searched(passage) for passage in PASSAGES])
    tokenizer.pad_token_id = 0
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Fixed:
    """Finds the passages in their order for every query, but for blank ones."""

    def __init__(self, found: Sequence[Passage] = PASSAGES) -> None:
        self._found, self.wanted = found, 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.wanted = k
        return [list(self._found[:k]) if query.strip() else [] for query in queries]


def info(model: str, depth: int) -> IndexInfo:
    return IndexInfo(
        FORMAT_VERSION, "bm25", 20, 0, "c", {}, reranker=RerankerInfo(model=model, depth=depth)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


def score(model: str, query: str, passage: Passage) -> float:
    """The model's score of one pair, worked out without sentence-transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = BertForSequenceClassification.from_pretrained(model).eval()
    pair = tokenizer(query, searched(passage), truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        return float(network(**pair).logits[0, 0])


def test_the_order_is_that_of_the_models_scores(model: str) -> None:
    reranked = Reranked(info(model, 20), Fixed(), device="cpu")
    found = reranked.search([QUERIES[0], " ", *QUERIES[1:]], 20)
    assert found.pop(1) == []
    for query, ranked in zip(QUERIES, found, strict=True):
        scores = {passage: score(model, query, passage) for passage in PASSAGES}
        assert ranked == sorted(PASSAGES, key=lambda passage: -scores[passage])
        assert ranked != PASSAGES, "it would prove nothing"
    assert len({tuple(ranked) for ranked in found}) == 3, "the query matters"
    assert len(reranked) == 20


def test_only_the_depth_is_ordered_and_k_may_be_less_or_more(model: str) -> None:
    everything = Reranked(info(model, 8), Fixed(), device="cpu").search(QUERIES[:1], 20)[0]
    assert everything[8:] == PASSAGES[8:] and {*everything[:8]} == {*PASSAGES[:8]}
    assert everything[:8] != PASSAGES[:8]
    index = Fixed()
    reranked = Reranked(info(model, 8), index, device="cpu")
    assert reranked.search(QUERIES[:1], 3)[0] == everything[:3]
    assert index.wanted == 8
    reranked.search(QUERIES[:1], 12)
    assert index.wanted == 12


def test_equal_scores_stay_as_they_came(model: str) -> None:
    alike = [Passage(id_, "Roy", "Clark") for id_ in "cab"]
    reranked = Reranked(info(model, 3), Fixed(alike), device="cpu")
    assert [p.id for p in reranked.search(["Roy"], 3)[0]] == ["c", "a", "b"]


@pytest.mark.parametrize("query", ["Tulsa " * 200_000, "x" * 10**6, "\x00", "\ud800", "😀 한국어"])
def test_any_query_is_answered(model: str, query: str) -> None:
    long = [Passage("long", "", "Hee Haw " * 100_000), *PASSAGES[:5]]
    (found,) = Reranked(info(model, 6), Fixed(long), device="cpu").search([query], 6)
    assert sorted(found, key=lambda p: p.id) == sorted(long, key=lambda p: p.id)


def test_several_threads_get_what_one_does(model: str) -> None:
    reranked = Reranked(info(model, 20), Fixed(), device="cpu")
    expected = [reranked.search([query], 5) for query in QUERIES]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda query: reranked.search([query], 5), QUERIES * 4)) == (
            expected * 4
        )


def test_wrong_requests_and_models_are_refused(model: str, tmp_path: Path) -> None:
    reranked = Reranked(info(model, 5), Fixed(), device="cpu")
    with pytest.raises(SteperError, match="at least 1"):
        reranked.search(["q"], 0)
    with pytest.raises(TypeError, match="not one string"):
        reranked.search("q", 1)
    assert reranked.search([], 1) == []
    with pytest.raises(SteperError, match="no cross-encoder could be loaded"):
        Reranked(info(str(tmp_path), 5), Fixed())
    three = save_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(SteperError, match=r"three: gives 3 scores .* not one"):
        Reranked(info(three, 5), Fixed(), device="cpu")
    with pytest.raises(ValueError, match="no reranker"):
        Reranked(replace(info(model, 5), reranker=None), Fixed())


def test_scores_that_are_no_numbers_are_told_of(model: str) -> None:
    reranked = Reranked(info(model, 5), Fixed(), device="cpu")
    with torch.no_grad():
        for weights in reranked._model.parameters():
            weights.fill_(float("nan"))
    with pytest.raises(SteperError, match="not numbers"):
        reranked.search(["q"], 1)


def test_a_model_without_an_output_layer_is_refused(model: str, tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(model).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(model) / name).read_bytes())
    with pytest.raises(SteperError, match="is no cross-encoder"):
        Reranked(info(str(tmp_path), 5), Fixed())
