"""What a sentence names is found, in English and elsewhere, and looked for in the right texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steper.grounding import Ground, content, count_words, mentions, numbers, same_word, unsupported


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        (
            "The Border Surrender has Keith Austin. That is all.",
            ["Border Surrender", "Keith Austin"],
        ),
        ("Samuel L. Jackson met J. Rowling.", ["Jackson", "Rowling"]),
        ("It lies in the U.S. and in Bosnia-Herzegovina.", ["US", "Bosnia Herzegovina"]),
        ("So the answer is: Paris.", ["Paris"]),
        ("So the answer is: No.", []),
        ("I know that he did; I do.", []),
        ("NASA and McCartney", ["NASA", "McCartney"]),
        ("The Mayor of 44Th Street", ["Mayor", "Street"]),
        ("ALL OF THIS IS SHOUTED BY BOB", []),
        ("Kraków and Łódź", ["Łodz"]),
        ("서울은 한국의 수도이다.", []),
        ("그는 Roy Clark를 만났다.", ["Roy Clark"]),
    ],
)
def test_names(sentence: str, names: list[str]) -> None:
    found = [" ".join(name) for name in mentions(sentence).names]
    joined = [name.replace("를", "") for name in found]
    assert joined == names


@pytest.mark.parametrize(
    ("sentence", "quotes"),
    [
        ('"Heat" and “Ran”', ["Heat", "Ran"]),
        ("Clark's show 'Hee Haw' isn't Clark's.", ["Hee Haw"]),
        ("'오징어 게임'은 《기생충》과 「괴물」보다", ["오징어 게임", "기생충", "괴물"]),
        ("the '90s of Clark's", []),
    ],
)
def test_quotes(sentence: str, quotes: list[str]) -> None:
    assert list(mentions(sentence).quotes) == quotes


def test_numbers_of_all_scripts_and_separators() -> None:
    assert numbers("1,234 1.234 05 3,5 ٣٤ 1999년") == ("1234", "1234", "5", "3.5", "34", "1999")
    assert len(numbers("9" * 10_000)) > 1  # no error from int()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("서울은", "서울", True),
        ("서울은", "서울의", True),
        ("1998", "1999", False),
        ("america", "americans", True),
        ("mart", "martinique", False),
        ("ann", "anne", False),
        ("은", "은행", False),
    ],
)
def test_forms_of_a_word(one: str, other: str, same: bool) -> None:
    assert same_word(one, other) == same_word(other, one) == same


@pytest.mark.parametrize(
    ("text", "sentence", "missing"),
    [
        ("Antonín Dvořák", "It is by Antonin Dvorak.", ()),
        ("Roy Linwood Clark", "It is Roy Clark.", ()),
        ("Clark, Roy", "It is Roy Clark.", ()),
        ("the Americas", "He is of America.", ()),
        ("the U.S. and the UK", "It lies in the US, or in the U.K.", ()),
        ("Roy Clark", "It is Roy Clarkson.", ()),  # close forms pass: leniency has its price
        ("Roy Clark", "It is Roy Orbison.", ("Roy Orbison",)),
        ("born 1933, died 2018", "He was born 1933, died 2018 and lived 85 years.", ()),
        ("born 1933, died 2018", "He lived 85 years.", ("85",)),
        ("born 1933", "There were 12 of 13.", ("13",)),
        ("Hee Haw was", "It is “Haw Hee”.", ("Haw Hee",)),
        ("'오징어 게임'은", "「오징어 게임」이다", ()),
        ("서울에서", "「부산」이다", ("부산",)),
    ],
)
def test_what_is_missing(text: str, sentence: str, missing: tuple[str, ...]) -> None:
    assert unsupported(sentence, [text]) == missing


def test_a_name_stands_in_one_text_not_in_two_halves() -> None:
    assert unsupported("It is Roy Clark.", ["Roy Orbison", "Petula Clark"]) == ("Roy Clark",)
    assert unsupported("It is Roy Clark.", ["Roy Orbison", "Roy Clark"]) == ()


def test_numbers_said_before_may_be_reckoned_with() -> None:
    ground = Ground(["born 1933, died 2018"])
    assert ground.missing("He was born in 1933.") == ground.missing("He died in 2018.") == ()
    assert ground.missing("He lived 85 years.") == ()
    made_up = Ground(["born 1933"])
    assert made_up.missing("He was born in 1933 and died in 2018.") == ("2018",)
    assert made_up.missing("He lived 85 years.") == ("85",)


def test_content_leaves_small_words_out() -> None:
    assert content("The film is by Bo Li, of 1999.") == {"film", "bo", "li", "1999"}
    assert "수도이다" in content("서울은 수도이다.")


def test_words_are_counted_without_spaces_too() -> None:
    assert [count_words(s) for s in ("one, two", "서울은 수도", "東京です", "")] == [2, 2, 4, 0]


@given(st.text(max_size=80))
def test_a_text_supports_itself(text: str) -> None:
    assert unsupported(text, [text]) == ()


@given(st.text(max_size=60), st.lists(st.text(max_size=40), max_size=3), st.text(max_size=40))
def test_more_to_read_never_takes_ground_away(text: str, sources: list[str], more: str) -> None:
    assert set(unsupported(text, [*sources, more])) <= set(unsupported(text, sources))
