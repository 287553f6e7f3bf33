"""Cutting prose: headings, sentences of several scripts, passages of even length."""

from __future__ import annotations

import pytest

from steper.prose import sections, split_passages, split_sentences, word_starts


def test_sections_have_the_path_of_their_headings() -> None:
    found = sections("Before.\n# A\n## B #\none\n### \n## C# \ntwo\n# D\nthree")
    assert found == [
        ((), "Before."),
        (("A",), ""),
        (("A", "B"), "one"),
        (("A", "B"), ""),
        (("A", "C#"), "two"),
        (("D",), "three"),
    ]


def test_front_matter_and_code_are_no_headings() -> None:
    text = "---\ntitle: x\n---\n# A\n```\n# no\n~~~\n# no\n```\n#hashtag\n## B\nend"
    assert [path for path, _ in sections(text)] == [(), ("A",), ("A", "B")]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. J. Lee sang. 12.5 years? Yes!", ["Dr. J. Lee sang.", "12.5 years?", "Yes!"]),
        ("He said “no.” Then he left", ["He said “no.”", "Then he left"]),
        ("e.g. this one stays", ["e.g. this one stays"]),
        (
            "One line\n\nand a paragraph\nof two lines.",
            ["One line", "and a paragraph of two lines."],
        ),
        ("서울은 수도이다. 한강이 흐른다!", ["서울은 수도이다.", "한강이 흐른다!"]),
        ("서울은 수도이다.한강이 흐른다.", ["서울은 수도이다.", "한강이 흐른다."]),
        ("예. 그렇습니다.", ["예.", "그렇습니다."]),  # one syllable is a word, no initial
        ("値段は1.5倍。「本当？」彼は聞いた。", ["値段は1.5倍。", "「本当？」", "彼は聞いた。"]),
        ("", []),
        (" \n\n \n", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_words_of_scripts_without_spaces_are_pairs_of_characters() -> None:
    assert len(word_starts("Roy Clark hosted it.")) == 4
    assert len(word_starts("東京は日本の首都です。")) == 6  # ten characters and a stop
    assert len(word_starts("ประเทศไทย")) == 5
    assert len(word_starts("서울은 대한민국의 수도이다.")) == 3
    assert len(word_starts("x" * 1001)) == 6


def test_passages_come_out_even() -> None:
    text = "One two three four five. " * 21  # 105 words: two passages, not 100 and 5
    assert [len(passage.split()) for passage in split_passages(text)] == [55, 50]


def test_a_long_sentence_is_cut_between_words() -> None:
    text = " ".join(f"w{n}" for n in range(25))
    assert [passage.split()[0] for passage in split_passages(text, limit=10)] == [
        "w0",
        "w10",
        "w20",
    ]


def test_unspaced_text_is_cut_at_its_stops_and_keeps_its_characters() -> None:
    text = "東京は日本の首都です。人口は多い。"
    assert split_passages(text, limit=6) == ["東京は日本の首都です。", "人口は多い。"]
    passages = split_passages("東京都" * 10, limit=5)
    assert [len(passage) for passage in passages] == [10, 10, 10]
    assert "".join(passages) == "東京都" * 10


def test_an_accent_is_not_cut_from_its_letter() -> None:
    thai = "ที่" * 40  # a consonant, a vowel above it, a tone mark above that
    for limit in range(1, 9):
        passages = split_passages(thai, limit=limit)
        assert "".join(passages) == thai
        assert all(passage[0] == "ท" for passage in passages)


def test_overlap_repeats_the_last_sentences() -> None:
    text = "One two three. Now five six. For eight nine. Ten or eleven. So it ends."
    assert split_passages(text, limit=6, overlap=1) == [
        "One two three. Now five six.",
        "Now five six. For eight nine.",
        "For eight nine. Ten or eleven.",
        "Ten or eleven. So it ends.",
    ]
    # The repeated sentences leave no room: each passage still brings a new one.
    assert split_passages(text, limit=3, overlap=2)[2] == (
        "One two three. Now five six. For eight nine."
    )


def test_units_may_share_their_place() -> None:
    """As the tokens of one emoji do."""
    starts = lambda text: [place for place in range(len(text)) for _ in range(4)]  # noqa: E731
    assert split_passages("abc", limit=1, starts=starts) == ["a", "b", "c"]
    assert split_passages("abc", limit=4, starts=starts) == ["a", "b", "c"]
    assert split_passages("abc", limit=8, starts=starts) == ["ab", "c"]


@pytest.mark.parametrize(
    "unit", [".", "a. ", "다.", "。", "日本", "\n \n", ". ", ".)", "# ", "ก", "\0"]
)
def test_a_megabyte_of_anything_takes_no_time(unit: str) -> None:
    """Patterns that look twice at what they have passed would take hours here."""
    text = unit * (1_000_000 // len(unit))
    joined = "".join(split_passages(text))
    assert "".join(joined.split()) == "".join(text.split())
    assert sections(f"# {text}")
