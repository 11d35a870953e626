"""Kinds of writing: shipped and custom files, and one-line errors."""

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.writing.kinds import FOLDER, load_kind

SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_kinds(name):
    kind = load_kind(name)
    assert kind.name == name and bool(kind.instruction) != bool(kind.questions)
    assert all("{" not in asked + question for asked, question in kind.examples)


def test_kind_from_a_path(tmp_path):
    file = tmp_path / "glossary.yaml"
    file.write_text("about: names\nquestions: ['What is {first} to {second}?']\nshort: true\n")
    kind = load_kind(str(file))
    assert (kind.name, kind.about, kind.short) == ("glossary", "names", True)
    assert kind.questions == ("What is {first} to {second}?",)


@pytest.mark.parametrize(
    "text, line",
    [
        ("- a", r"keys about, .* are allowed, got \['a'\]"),
        (
            "about: page\nquestions: [a]",
            "about is one of sentence, phrase, beginning, names, document, got",
        ),
        ("about: document\nanswers: x", r"are allowed, got \['answers'\]"),
        (
            "about: document\nquestions: [a]\nanswer: given",
            "is one of document, base, got 'given'",
        ),
        (
            "about: beginning\nquestions: [a]",
            "answer is one of given, got 'document'",
        ),
        ("about: document", "either instruction or questions, got both or none"),
        (
            "about: document\nquestions: ['{sentence}?']",
            "fields text, title are allowed, got sentence",
        ),
        ("about: document\nquestions: ['{title']", "expected '}' before end of string"),
        (
            "about: document\ninstruction: '{title}'\nexamples: [{question: x}]",
            "examples of {fields, question} that fit",
        ),
        ("about: [", "no readable kind of writing"),
    ],
)
def test_invalid_kind_gives_one_line_error(tmp_path, text, line):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=line) as error:
        load_kind(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_unknown_kind_error_names_shipped_kinds():
    with pytest.raises(InputError, match=r"generation\.kinds: one of .*question.*, got 'qestion'"):
        load_kind("qestion")
