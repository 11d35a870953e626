"""Units of documents: sentences, their beginnings, pairs of names."""

import random

import pytest

from sleep_rl.contracts.records import Document
from sleep_rl.writing.units import cut_at, draw, names, phrases, sentences, units

TEXT = (
    "Tarnwick, part 1 of 2\n\n## Staff\n"
    "The Tarnwick Institute was founded in 1968 by Alice Thorne. Its motto is short.\n"
    "- A brass clock came from Orme in 1970!"
)
DOCUMENT = Document("d", TEXT, "Tarnwick")


def test_sentences_of_the_body():
    assert [unit.fields["sentence"] for unit in units("sentence", DOCUMENT)] == [
        "The Tarnwick Institute was founded in 1968 by Alice Thorne.",
        "A brass clock came from Orme in 1970!",
    ]
    assert all(unit.fields["title"] == "Tarnwick" for unit in units("sentence", DOCUMENT))
    assert not any("##" in unit.fields["text"] for unit in units("document", DOCUMENT))


def test_beginning_and_rest_form_the_sentence():
    for unit in units("beginning", DOCUMENT):
        whole = f"{unit.fields['beginning']} {unit.rest}"
        assert whole in sentences(units("document", DOCUMENT)[0].fields["text"])
        assert unit.rest and unit.fields["beginning"]
    assert cut_at("a b c d", 0.5) == ("a b", "c d")
    assert cut_at("a b c", 0.9) == ("a b", "c")


def test_names_are_capitalised_words_inside_sentences():
    text = (
        "The Halden Bridge was built by Ruth Abel in Orme. Stones were brought by Norrby Ferries."
    )
    assert names(text) == ["Halden Bridge", "Ruth Abel", "Orme", "Norrby Ferries"]
    pairs = [
        (unit.fields["first"], unit.fields["second"])
        for unit in units("names", Document("d", text))
    ]
    assert ("Halden Bridge", "Ruth Abel") in pairs and len(pairs) == 6


@pytest.mark.parametrize(
    "sentence, expected",
    [
        (
            "The roof of Tanner Barn is covered with dry heather.",
            ["Tanner Barn", "dry heather", "roof"],
        ),
        (
            "Project Walnut will run for a period of 6 years.",
            ["Project Walnut", "6 years", "period"],
        ),
        ("The motto of the Halden Club is Patience.", ["Halden Club", "Patience", "motto"]),
        ("Ruth Abel opened the bridge in 1931", ["Ruth Abel", "1931", "bridge"]),
        (
            "Since the flood of 1951 the driver has had 3 small dogs.",
            ["1951", "3 small", "flood", "driver"],
        ),
        (
            "From Ruth Abel a green glass bell was given to the art lovers of the Halden Club.",
            ["Ruth Abel", "Halden Club", "green glass bell", "art lovers"],
        ),
        ("Will Smith and the poor staff meets at the Orme.", ["Will Smith", "Orme"]),
        ("The old iron bell rings at Near Point.", ["Near Point"]),
        ("Nobody in this room ever eats cheese!", ["eats cheese"]),
    ],
)
def test_phrases_are_names_numbers_and_the_end(sentence, expected):
    assert phrases(sentence) == expected
    [*found] = units("phrase", Document("d", sentence))
    assert [unit.fields["phrase"] for unit in found] == expected
    assert {unit.fields["sentence"] for unit in found} == {sentence}


@pytest.mark.parametrize(
    "sentence, asked",
    [
        (
            "Tanner Barn is covered with dry heather.",
            ["Who or what is covered with dry heather", "Tanner Barn is covered with what"],
        ),
        (
            "Project Walnut will run for 6 years from 1931!",
            [
                "Who or what will run for 6 years from 1931",
                "Project Walnut will run for how many years from 1931",
                "Project Walnut will run for 6 years from which year",
            ],
        ),
        (
            "Since the flood of 1951 the dog barks.",
            [
                "Since the flood of which year the dog barks",
                "Since the flood of 1951 the what",
                "Since the what of 1951 the dog barks",
            ],
        ),
        ("It has room for 37.", ["It has room for how many"]),
        (
            "He started the art of weaving at Orme.",
            [
                "He started the art of weaving at who or what",
                "He started the what of weaving at Orme",
            ],
        ),
    ],
)
def test_a_phrase_is_asked_for_in_its_place(sentence, asked):
    found = units("phrase", Document("d", sentence))
    assert [unit.fields["asked"] for unit in found] == asked


@pytest.mark.parametrize(
    "per_unit, low, high", [(0, 0, 0), (2, 20, 20), (0.3, 1, 6), (1.5, 11, 19)]
)
def test_expected_number_of_units(per_unit, low, high):
    found = units("sentence", Document("d", "One two three four five. " * 10))
    assert len(found) == 10
    assert low <= len(draw(found, per_unit, random.Random(1))) <= high
    many = len(draw(found * 200, per_unit, random.Random(1))) / 2000
    assert many == pytest.approx(per_unit, abs=0.05)


def test_title_defaults_to_first_words():
    [unit] = units("document", Document("d", "One two three four five six seven eight."))
    assert unit.fields["title"] == "One two three four five six"
