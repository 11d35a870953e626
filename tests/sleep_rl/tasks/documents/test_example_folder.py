"""The example folder configs/example: two days of an invented organisation, with questions."""

import difflib
import itertools
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from sleep_rl.tasks.grading import tokens

EXAMPLE = Path(__file__).parents[4] / "configs" / "example"
DAYS = ("day1", "day2")
DELETED = "events.md"
CORRECTED = "people.md"
NEW = ("garden.md", "school.md")
PER_DOCUMENT = {"verbatim": 2, "paraphrased": 2, "reversed": 1}
WITHOUT_ANSWER = ("never-told", "deleted")
ORGANISATION = "Tarnwick Institute"
PRONOUNS = """
    it its he she they them their theirs his her hers him this that these those former latter one
    who which there here we our us you your i my
"""
FUNCTION_WORDS = """
    a all an and are as at be by can did do does for from had has have how in into is many much
    must of on or the to was were what when where which who whom whose will with
"""
ORDINARY = """
    A All Every The Wet Umbrellas January April June July October November Sunday Tuesday Wednesday
    Thursday Friday
"""
MOST_SIMILAR = 0.8  # difflib's ratio of two names, 1 for equal ones


@cache
def documents(day):
    """File name -> text."""
    return {path.name: path.read_text() for path in sorted((EXAMPLE / day).glob("*.md"))}


@cache
def rows(path):
    return [json.loads(line) for line in (EXAMPLE / path).read_text().splitlines()]


def questions(day):
    return rows(f"{day}/questions.jsonl")


def answered(day):
    return [row for row in questions(day) if row["kind"] not in WITHOUT_ANSWER]


def sentences(text):
    """The sentences below the title; each has a line of its own."""
    title, empty, *lines = text.splitlines()
    assert re.fullmatch(r"# [A-Z].*[a-z]", title) and not empty
    return lines


def holds(text, phrase):
    """Whether a phrase stands word for word in a text."""
    return re.search(rf"\b{re.escape(phrase)}\b", text) is not None


def names(text):
    """Capitalised words that are no ordinary ones."""
    return {word for word in re.findall(r"\b[A-Z]\w+", text) if word not in ORDINARY.split()}


def names_of(question):
    """The names in a question, without its first word."""
    return names(question.split(maxsplit=1)[1])


def form(question):
    """A question with a blank for each name of several words."""
    first, rest = question.split(maxsplit=1)
    return f"{first} {re.sub(r'[A-Z][a-z]+( [A-Z][a-z]+)*', '_', rest)}"


def stem(word):
    return re.sub(r"(?<=\w{3})(ing|ed|es|er|s|e)$", "", word)


def content(text):
    """Stems of the words that carry meaning; names are left out, a question must repeat those."""
    lower = re.findall(r"\b[a-z]\w*", text)
    return {stem(word) for word in lower if word not in FUNCTION_WORDS.split()}


def fact(day, row):
    """The sentence that answers a row: of those with the answer, the one most like the verbatim
    question of the fact or, without one, like the row's own.
    """
    asked = [
        other["question"]
        for other in questions(day)
        if (other["kind"], other["document"], other["answer"])
        == ("verbatim", row["document"], row["answer"])
    ]
    wanted = Counter(tokens(" ".join(asked or [row["question"]])))
    found = [
        line for line in sentences(documents(day)[row["document"]]) if holds(line, row["answer"])
    ]
    return max(found, key=lambda line: (wanted & Counter(tokens(line))).total())


def verbatim_of(day, row):
    """The verbatim question about the same fact."""
    return next(
        other
        for other in questions(day)
        if other["kind"] == "verbatim"
        and other["document"] == row["document"]
        and fact(day, other) == fact(day, row)
    )


# ---- documents


@pytest.mark.parametrize("day", DAYS)
def test_documents_are_short_and_of_plain_sentences(day):
    for name, text in documents(day).items():
        assert 110 <= len(text.split()) <= 150, name
        assert text.isascii(), name
        for line in sentences(text):
            assert re.fullmatch(r"[A-Z][A-Za-z0-9 ]+\.", line), line
            assert 8 <= len(line.split()) <= 20, line
            assert not set(PRONOUNS.split()) & set(line.lower().rstrip(".").split()), line


@pytest.mark.parametrize("day", DAYS)
def test_no_sentence_or_number_occurs_twice_and_no_two_names_are_similar(day):
    lines = [line for text in documents(day).values() for line in sentences(text)]
    numbers = [number for line in lines for number in re.findall(r"\d+", line)]
    assert len(set(lines)) == len(lines)
    assert len(numbers) > 20 and len(set(numbers)) == len(numbers)
    found = sorted(set().union(*map(names, lines)))
    assert len(found) > 90
    for one, other in itertools.combinations(found, 2):
        ratio = difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()
        assert ratio < MOST_SIMILAR, (one, other)


def test_the_second_day_has_two_new_one_corrected_and_one_deleted_document():
    before, after = map(documents, DAYS)
    assert len(before) == 10 and len(after) == 11
    assert set(before) - set(after) == {DELETED}
    assert set(after) - set(before) == set(NEW)
    changed = [name for name in before if name != DELETED and before[name] != after[name]]
    assert changed == [CORRECTED]
    old = before[CORRECTED].splitlines()
    new = after[CORRECTED].splitlines()
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 3


# ---- questions


@pytest.mark.parametrize("day", DAYS)
def test_rows_have_the_fields_of_their_kind(day):
    for row in questions(day):
        expected = {"question", "answer", "document", "kind"}
        if row["kind"] not in WITHOUT_ANSWER:
            expected |= {"choices"}
        assert set(row) - {"old_answer"} == expected, row
        assert ("old_answer" in row) <= (day == "day2"), row
        assert row["question"].endswith("?") and row["question"].isascii()
        if row["kind"] in WITHOUT_ANSWER:
            assert row["answer"] == row["document"] == ""


@pytest.mark.parametrize("day", DAYS)
def test_every_document_and_kind_has_its_number_of_questions(day):
    per_document = Counter((row["document"], row["kind"]) for row in answered(day))
    for name in documents(day):
        assert {kind: per_document[name, kind] for kind in PER_DOCUMENT} == PER_DOCUMENT, name
    kinds = Counter(row["kind"] for row in questions(day))
    assert kinds["two-hop"] == 6 and kinds["never-told"] == 8
    assert kinds["deleted"] == {"day1": 0, "day2": 4}[day]
    assert set(kinds) <= {*PER_DOCUMENT, "two-hop", *WITHOUT_ANSWER}


@pytest.mark.parametrize("day", DAYS)
def test_no_question_occurs_twice(day):
    asked = [" ".join(tokens(row["question"])) for row in questions(day)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("day", DAYS)
def test_answers_and_choices_stand_in_the_documents(day):
    everything = "\n".join(documents(day).values())
    for row in answered(day):
        assert 1 <= len(row["answer"].split()) <= 4
        assert holds(documents(day)[row["document"]], row["answer"]), row
        assert not holds(row["question"], row["answer"]), row
        assert len(row["choices"]) == len(set(row["choices"])) == 3
        for choice in row["choices"]:
            assert holds(everything, choice), (row, choice)
            assert tokens(choice) != tokens(row["answer"])
            assert not holds(fact(day, row), choice), (row, choice)


@pytest.mark.parametrize("day", DAYS)
def test_questions_name_what_they_ask_about(day):
    everything = "\n".join(documents(day).values())
    for row in questions(day):
        named = names_of(row["question"])
        assert named or re.search(r"\d", row["question"]), row
        if row["kind"] not in WITHOUT_ANSWER:
            assert all(holds(everything, name) for name in named), row


@pytest.mark.parametrize("day", DAYS)
def test_verbatim_questions_have_their_sentence_s_words_and_paraphrased_ones_others(day):
    for row in answered(day):
        asked = content(row["question"])
        shared = asked & content(fact(day, row))
        if row["kind"] == "verbatim":
            assert 2 * len(shared) >= len(asked), row
        if row["kind"] == "paraphrased":
            assert len(shared) <= 1 < len(asked) or not shared, (row, shared)
            twin = verbatim_of(day, row)
            assert twin["answer"] == row["answer"]
            assert len(asked & content(twin["question"])) <= 1, (row, twin)


@pytest.mark.parametrize("day", DAYS)
def test_reversed_questions_name_the_answer_of_a_verbatim_one_and_ask_for_what_it_names(day):
    for row in answered(day):
        if row["kind"] == "reversed" and "old_answer" not in row:
            twin = verbatim_of(day, row)
            assert holds(row["question"], twin["answer"]), row
            assert holds(twin["question"], row["answer"]), row


@pytest.mark.parametrize("day", DAYS)
def test_two_hop_questions_need_a_second_document(day):
    """What the question names is not in the document of the answer, and another document has both
    that and a name or post of the sentence with the answer.
    """
    for row in answered(day):
        if row["kind"] == "two-hop":
            named = names_of(row["question"]) | set(re.findall(r"\d+", row["question"]))
            texts = dict(documents(day))
            answering = texts.pop(row["document"])
            assert not any(holds(answering, name) for name in named), row
            bridges = re.findall(r"[A-Z]\w+ [A-Z]\w+|head diver|Foxbury", fact(day, row))
            bridges = set(bridges) - {row["answer"], ORGANISATION}
            assert any(
                holds(line, bridge) and all(holds(line, name) for name in named)
                for text in texts.values()
                for line in sentences(text)
                for bridge in bridges
            ), row


def test_never_told_questions_have_told_forms_and_name_what_no_document_mentions():
    everything = "\n".join(text for day in DAYS for text in documents(day).values())
    told = {form(row["question"]) for row in answered("day1")}
    never = [row for row in questions("day1") if row["kind"] == "never-told"]
    assert never == [row for row in questions("day2") if row["kind"] == "never-told"]
    for row in never:
        assert any(not holds(everything, name) for name in names_of(row["question"])), row
        assert form(row["question"]) in told, row


# ---- the second day's questions


def test_the_second_day_asks_what_still_holds_and_what_was_corrected_with_new_answers():
    before = {row["question"]: row for row in questions("day1")}
    after = {row["question"]: row for row in questions("day2")}
    old_text, new_text = (documents(day)[CORRECTED] for day in DAYS)
    corrected = set(sentences(old_text)) - set(sentences(new_text))
    for question, row in before.items():
        if row["kind"] == "never-told":
            assert after[question] == row
        elif row["document"] == DELETED or "Lamp Night" in question:
            assert question not in after or after[question]["kind"] == "deleted"
        elif fact("day1", row) in corrected:
            new = after[question]
            assert new["old_answer"] == row["answer"] != new["answer"]
            assert new == row | {"answer": new["answer"], "old_answer": row["answer"]}
        else:
            assert after[question] == row
    changed = [row for row in after.values() if "old_answer" in row and row["kind"] != "deleted"]
    assert Counter(row["kind"] for row in changed) == PER_DOCUMENT | {
        "verbatim": 2,
        "paraphrased": 2,
        "two-hop": 1,
    }
    assert {row["document"] for row in changed} == {CORRECTED}
    for question in set(after) - set(before):
        row = after[question]
        assert row["document"] in NEW or row["kind"] == "two-hop", row


def test_questions_about_the_deleted_document_keep_its_answers_as_old_ones():
    before = {row["question"]: row for row in questions("day1")}
    told = "\n".join(documents("day2").values())
    for row in questions("day2"):
        if row["kind"] == "deleted":
            asked = before[row["question"]]
            assert asked["document"] == DELETED
            assert row["old_answer"] == asked["answer"]
            assert not holds(told, row["old_answer"])


# ---- common knowledge


def test_known_questions_have_three_wrong_choices_and_are_not_in_the_documents():
    known = rows("known.jsonl")
    assert len(known) == len({row["question"] for row in known}) == 24
    told = "\n".join(text for day in DAYS for text in documents(day).values())
    for row in known:
        assert set(row) == {"question", "answer", "choices"}
        assert len({*row["choices"], row["answer"]}) == 4
        assert not any(holds(told, name) for name in names_of(row["question"])), row
