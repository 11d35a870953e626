"""Generated questions: parsing, names, neighbours."""

import random

import pytest

from sleep_rl.contracts.records import Document
from sleep_rl.writing.questions import (
    first_sentence,
    names_something,
    normalised,
    read_question,
    rename,
    said_phrases,
)
from sleep_rl.writing.units import units

[UNIT] = units(
    "sentence",
    Document("d", "The Tarnwick Institute was founded in 1968 by Alice Thorne.", "History"),
)


@pytest.mark.parametrize(
    "text, question",
    [
        ("Who founded the Tarnwick Institute?", "Who founded the Tarnwick Institute?"),
        ("1. Question: Who founded it all?\nAnswer: me", "Who founded it all?"),
        ('"Who founded it all?"', "Who founded it all?"),
        ("The institute was founded in 1968.", None),
        ("Who? When?", None),
        ("Who?", None),
        ("", None),
        (" ".join(["word"] * 41) + "?", None),
    ],
)
def test_parse_question(text, question):
    assert read_question(text) == question


def test_parse_instruction():
    assert read_question("Write a timeline of Tarnwick.", statement=True)
    assert read_question("Write a timeline of Tarnwick.") is None


@pytest.mark.parametrize(
    "question, named",
    [
        ("When was the Tarnwick Institute founded?", True),
        ("What happened in 1968?", True),
        ("What did Alice Thorne do?", True),
        ("When was it founded?", False),
        ("When was the Norrby Ferry founded?", False),
    ],
)
def test_question_must_name_something_of_its_sentence(question, named):
    assert names_something(question, UNIT) is named


def test_names_of_neighbours_are_in_no_document():
    rng = random.Random(0)
    asked = rename("Who founded the Tarnwick Institute?", UNIT, rng)
    assert asked.startswith("Who founded the ") and asked.endswith("?")
    assert "Tarnwick" not in asked and "Institute" not in asked
    assert rename("Who founded it?", UNIT, rng) is None


def test_duplicates_are_compared_by_words():
    assert normalised("Who,  founded IT?") == normalised("who founded it")


def test_phrases_that_an_answer_says_and_its_question_does_not():
    phrases = ["Felix Pike", "a brass clock"]
    question = "What was the gift of Felix Pike?"
    assert said_phrases(question, "It was a brass clock.", phrases) == ["a brass clock"]
    assert said_phrases(question, "Felix Pike gave a gift.", phrases) == []
    assert said_phrases("Who gave a brass clock?", "Felix Pike did.", phrases) == ["Felix Pike"]


@pytest.mark.parametrize(
    "text, kept",
    [
        ("It is red. It is dry.", "It is red."),
        (" It is red\nIt is dry.", " It is red"),
        ("It costs 4.50 dollars", "It costs 4.50 dollars"),
        ('He said "no." Then', 'He said "no."'),
    ],
)
def test_end_of_the_first_sentence(text, kept):
    assert text[: first_sentence(text)] == kept
