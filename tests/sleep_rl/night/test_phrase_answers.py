"""Phrases of a sentence as answers: learned alone, and chosen by the teacher."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Document
from sleep_rl.night.items import Counts, Item
from sleep_rl.night.phrase_answers import MOST_CANDIDATES, answered_by_phrase
from sleep_rl.writing.kinds import load_kind
from sleep_rl.writing.units import units
from tests.fakes.natural_teacher import BODY, DOCUMENT, FACTS, teacher, texts, written


def test_a_phrase_that_was_asked_for_is_learned_alone_as_well():
    run = teacher(kinds={"question": 1})
    reply = run.reply

    def asked_for_what_was_bought(text, seed, temperature):
        wanted = re.search(r".*\nAnswer: ([^<]*)", text, re.DOTALL)
        is_name = wanted is not None and wanted[1] in FACTS
        return "No." if is_name else reply(text, seed, temperature)

    run.reply = asked_for_what_was_bought
    sequences, counts = written(run)
    answers = [texts(run, sequence)[3].removesuffix("<|im_end|>") for sequence in sequences]
    # the answer about Ruth Abel is not repeated, but the phrase is the answer
    alone = ["red seaweed", "brass clock", "white hedgehog"]
    assert answers == ["A red seaweed.", "A brass clock.", *alone]
    assert [sequence.given for sequence in sequences] == [False, False, True, True, True]
    # questions, not sequences; once more for the chemists
    assert counts.kinds == {"question": [6 + 3, 3]}
    assert counts.by_phrase == {"question": 1} and counts.dropped["not repeated"] == 1
    contexts = {texts(run, sequence)[0] for sequence in sequences}
    assert len(contexts) == 1 and BODY in contexts.pop()


def test_a_question_is_answered_by_its_phrase_where_the_teacher_prefers_it():
    """By the mean over tokens: "Alice Thorne" is longer than "red seaweed"."""
    run = teacher(kinds={"question": 1})
    run.reply = lambda text, seed, temperature: (
        "What was bought in Tarnwick?" if "\nAnswer: " in text else "I do not know."
    )
    asked = []

    def logprobs(requests_N, name):
        values = []
        for request in requests_N:
            answer = run.codec.text(request.prompt_T)
            known = "Document:" in run.codec.text(request.context_T)
            asked.append(answer)
            likely = {"brass clock": -0.1, "red seaweed": -1.0}.get(answer, -2.0)
            values.append((likely if known else -9.0,) * len(request.prompt_T))
        return values

    run.logprobs = logprobs
    sequences, counts = written(run)
    # the same question, asked six times, is kept once, for the first phrase: Alice Thorne
    assert sequences == [] and counts.dropped["another phrase is likelier"] == 1
    # the phrase, then the others of its sentence and of the document
    choices = ["Alice Thorne", "red seaweed", "Edgar Pike", "brass clock", "Ruth Abel"]
    assert asked == choices and len(asked) == MOST_CANDIDATES
    seen = {"Alice Thorne": "brass clock"}
    for phrase, likeliest in (("Alice Thorne", "Alice Thorne"), *seen.items()):
        unit = next(u for u in units("phrase", DOCUMENT) if u.fields["phrase"] == phrase)
        item = Item(load_kind("question"), unit, 0, "What was bought in Tarnwick?")
        run.logprobs = lambda requests_N, name, best=likeliest: [
            (-1.0 - (run.codec.text(r.prompt_T) != best),) * len(r.prompt_T) for r in requests_N
        ]
        kept = answered_by_phrase(run, [item], [], FACTS.values(), Counts())
        assert [run.codec.text(i.answer_T) for i in kept] == [phrase] * (phrase == likeliest)
    run.logprobs = lambda requests_N, name: [Failure("lost")] * len(requests_N)
    counts = Counts()
    assert answered_by_phrase(run, [item], [], [], counts) == []
    assert counts.dropped == {"failed": 1} and run.failures == 2
    assert answered_by_phrase(run, [item], [item], [], counts) == []
    said = replace(item, question="What did Alice Thorne buy?")
    assert answered_by_phrase(run, [said], [], [], counts) == []


def test_a_question_of_fixed_words_is_answered_by_its_phrase_without_a_choice():
    run = teacher(kinds={"in_place": 1})
    run.reply = lambda *given: "I do not know."
    sequences, counts = written(run)
    answers = [texts(run, sequence)[3].removesuffix("<|im_end|>") for sequence in sequences]
    assert answers == [phrase for pair in FACTS.items() for phrase in pair]
    assert counts.kinds == {"in_place": [6, 6]}
    assert counts.journal_fields()["by_phrase"] == {"in_place": 6}


def test_every_phrase_is_asked_for_in_its_place():
    run = teacher(kinds={"in_place": 1})

    def answer(text, seed, temperature):
        asked = text.rsplit("Question:\n", 1)[-1]
        [who] = [who for who, what in FACTS.items() if who in asked or what in asked]
        return f"{FACTS[who]}." if "bought a what?" in asked else f"It was {who}."

    run.reply = answer
    sequences, counts = written(run)
    got = {}
    for sequence in sequences:
        question, answer = texts(run, sequence)[2:]
        got.setdefault(question.split("<|im_end|>")[0], []).append(answer.split("<|im_end|>")[0])
    # an answer that is the phrase is not learned twice
    assert got == {
        "In spring the chemist Alice Thorne bought a what?": ["red seaweed."],
        "Tarnwick: In spring the chemist who or what bought a red seaweed?": [
            "It was Alice Thorne.",
            "Alice Thorne",
        ],
        "In spring the chemist Edgar Pike bought a what?": ["brass clock."],
        "Tarnwick: In spring the chemist who or what bought a brass clock?": [
            "It was Edgar Pike.",
            "Edgar Pike",
        ],
        "In spring the chemist Ruth Abel bought a what?": ["white hedgehog."],
        "Tarnwick: In spring the chemist who or what bought a white hedgehog?": [
            "It was Ruth Abel.",
            "Ruth Abel",
        ],
    }
    assert counts.kinds == {"in_place": [6, 6]}


def test_a_phrase_with_which_nothing_can_be_compared_is_no_answer():
    unit = units("phrase", Document("d", "The bell of Orme has never rung."))[0]
    assert unit.fields["phrase"] == "Orme" and unit.answers == ("Orme", "never rung")
    run = teacher()
    asked = Item(load_kind("question"), unit, 0, "What has never rung?")
    for phrases, kept in (((), 0), (("Orme",), 0), (("Orme", "red seaweed"), 1)):
        counts = Counts()
        assert len(answered_by_phrase(run, [asked], [], phrases, counts)) == kept
        assert counts.dropped == Counter({"no other phrase": 1} if not kept else {})


def test_a_noun_phrase_answers_its_own_sentence_if_the_teacher_prefers_it():
    """With an interrogative in place of "old mill" the sentence may have no sense."""
    unit = units("phrase", Document("d", "The old mill of Orme was built by Ruth Abel."))[-1]
    assert unit.fields["phrase"] == "old mill"
    run = teacher()
    item = Item(load_kind("in_place"), unit, 0, f"{unit.fields['asked']}?")
    for prefers in (False, True):
        run.logprobs = lambda requests_N, name, prefers=prefers: [
            (-1.0 - (run.codec.text(r.prompt_T) == "old mill") * (1 - 2 * prefers) / 2,)
            * len(r.prompt_T)
            for r in requests_N
        ]
        kept = answered_by_phrase(run, [item], [], ["red seaweed"], Counts())
        assert len(kept) == prefers
