"""Cutting loses nothing and doubles nothing, whatever the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from steper.prose import sentence_spans, split_passages, split_sentences, word_starts

ALPHABET = list("aBc 12.!?…\"')\n\r\t") + list("다요.가 。！？」東京ก็่é\u0301\u200d🙂\u3000\x00")
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=300) | st.text(max_size=100)
LIMITS = st.integers(1, 12)


def solid(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def every_character(text: str) -> list[int]:
    return list(range(len(text)))


@given(TEXTS, LIMITS, st.sampled_from([word_starts, every_character]))
def test_without_overlap_every_word_is_in_one_passage_in_order(
    text: str, limit: int, starts: object
) -> None:
    passages = split_passages(text, limit=limit, starts=starts)  # type: ignore[arg-type]
    assert solid("".join(passages)) == solid(text)
    assert all(passage.strip() == passage != "" for passage in passages)


@given(st.lists(st.sampled_from(["word", "Word.", "end!", "\n\n", "x" * 500]), max_size=80), LIMITS)
def test_spaced_words_stay_whole_and_passages_below_the_limit(
    words: Sequence[str], limit: int
) -> None:
    text = " ".join(word for word in words if len(word) < 500)
    passages = split_passages(text, limit=limit)
    assert [word for passage in passages for word in passage.split()] == text.split()
    assert all(len(passage.split()) <= limit for passage in passages)


@given(TEXTS, LIMITS)
def test_no_passage_is_over_the_limit(text: str, limit: int) -> None:
    for passage in split_passages(text, limit=limit):
        if not any(unicodedata.category(character).startswith("M") for character in passage):
            assert len(word_starts(passage)) <= limit


@given(TEXTS, LIMITS, st.integers(0, 5))
def test_overlap_repeats_exactly_the_last_pieces(text: str, limit: int, overlap: int) -> None:
    """With a limit that no sentence reaches, pieces are sentences."""
    sentences = split_sentences(text)
    longest = max((len(word_starts(sentence)) for sentence in sentences), default=1)
    passages = split_passages(text, limit=max(limit, longest + 1), overlap=overlap)
    done = 0
    for passage in passages:
        repeated = sentences[max(0, done - overlap) : done]
        rest = solid(passage)
        assert rest.startswith(solid("".join(repeated)))
        rest = rest[len(solid("".join(repeated))) :]
        assert rest, "each passage brings something new"
        while rest:
            assert rest.startswith(solid(sentences[done]))
            rest = rest[len(solid(sentences[done])) :]
            done += 1
    assert done == len(sentences)


@given(TEXTS)
def test_sentences_cover_the_text(text: str) -> None:
    folded, spans = sentence_spans(text)
    assert folded == " ".join(text.split())
    ends = [0, *(end for _, end in spans)]
    assert [begin for begin, _ in spans] == ends[:-1] and ends[-1] == len(folded)
