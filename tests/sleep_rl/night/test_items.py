"""What is planned about documents: phrases that identify a sentence, and those asked for again."""

from __future__ import annotations

import random

from sleep_rl.contracts.records import Document
from sleep_rl.night.items import planned_items
from tests.fakes.natural_teacher import teacher, texts, written


def test_phrases_that_many_sentences_have_are_not_asked_for():
    body = " ".join(f"The roof of Tarnwick House has {n} windows." for n in range(11, 16))
    items = planned_items({"gap": 1}, [Document("d", body)], random.Random(0))
    assert [item.unit.rest for item in items] == [f"{n} windows" for n in range(11, 16)]
    few = " ".join(body.split(". ")[:3])
    items = planned_items({"gap": 1}, [Document("d", few)], random.Random(0))
    assert "Tarnwick House" in {item.unit.rest for item in items}


def test_a_phrase_that_many_sentences_have_and_a_noun_phrase_answer_no_question_about_another():
    """ "The Halden Club." says something of most sentences, and of none what was asked."""
    body = " ".join(f"The Halden Club gave the driver {n} silver bells." for n in range(11, 16))
    items = planned_items({"question": 1}, [Document("d", body)], random.Random(0))
    answers = {item.unit.fields["phrase"]: item.unit.answers for item in items}
    assert answers == {f"{n} silver": (f"{n} silver",) for n in range(11, 16)}
    body = "The Halden Club gave the driver of Orme 11 bells."
    items = planned_items({"question": 1}, [Document("d", body)], random.Random(0))
    answers = {item.unit.fields["phrase"]: item.unit.answers for item in items}
    specific = {"Halden Club", "Orme", "11 bells"}
    assert set(answers) == {*specific, "driver"}
    assert all(set(answers[phrase]) == specific for phrase in specific)
    assert set(answers["driver"]) == {*specific, "driver"}
    run = teacher(kinds={"question": 1})
    run.reply = lambda text, seed, temperature: (
        "What did Alice Thorne buy?" if "\nAnswer: " in text else "A spring."
    )
    # asked once more, since nothing that was asked for is said
    assert written(run)[1].dropped["not about its sentence"] == 2


def test_a_phrase_that_no_kept_answer_says_is_asked_for_once_more():
    run = teacher(kinds={"question": 1})
    reply = run.reply

    def no_question_about_pike_at_first(text, seed, temperature):
        last = text.rsplit("<|im_start|>user\n", 1)[1]
        about_pike = "Sentence: In spring the chemist Edgar Pike" in last
        first = sum("chemist Edgar Pike" in asked for _, _, asked in run.asked) <= 2
        return "Well." if about_pike and first else reply(text, seed, temperature)

    run.reply = no_question_about_pike_at_first
    sequences, counts = written(run)
    assert "What did Edgar Pike buy?" in {texts(run, s)[2].split("<")[0] for s in sequences}
    # 6 phrases at first; then 5, since "What did Alice Thorne buy?" says seaweed only
    assert counts.kinds["question"] == [6 + 5, 2]
