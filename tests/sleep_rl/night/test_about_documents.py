"""Questions about documents and their answers, with a scripted teacher on real token ids."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from sleep_rl.contracts.records import CHECKPOINT, STUDENT, UNTOUCHED_BASE, Document
from sleep_rl.night.about_documents import about_documents
from sleep_rl.night.continuations import continuation_requests, cut, student_rows
from sleep_rl.night.items import Counts, planned_items
from sleep_rl.night.rows import teacher_rows
from sleep_rl.night.sequences import Origin
from tests.fakes.crew import sampled_ids
from tests.fakes.natural_teacher import (
    BODY,
    FACTS,
    TITLE,
    sampler_of,
    teacher,
    texts,
    written,
)


def test_questions_about_sentences_are_answered_with_the_document():
    run = teacher(kinds={"reversed": 1})
    sequences, counts = written(run)
    assert counts.kinds == {"reversed": [3, 2]}
    assert counts.journal_fields()["dropped"] == {"not repeated": 1}
    assert counts.journal_fields()["ends"] == {"token": 3}
    context, bare, x, y = texts(run, sequences[0])
    assert context.endswith("Question:\n") and BODY in context and TITLE in context
    assert bare == "<|im_start|>user\n"
    assert x == "What did Alice Thorne buy?<|im_end|>\n<|im_start|>assistant\n"
    assert y == "A red seaweed.<|im_end|>"
    assert sequences[0].origin == Origin.DOCUMENT
    greedy = [text for _, temperature, text in run.asked if temperature == 0]
    assert len(greedy) == 3 and all(BODY in text for text in greedy)


def test_texts_that_are_no_question_are_dropped_with_reason():
    run = teacher(kinds={"reversed": 1})
    run.questions = {"Edgar Pike": "He bought a thing."}
    _, counts = written(run)
    assert counts.journal_fields()["dropped"] == {"no question": 1, "not repeated": 1}


def test_a_question_that_names_nothing_of_its_document_gets_the_title():
    run = teacher(kinds={"question": 1}, min_gain=-1.0)
    run.questions = {"Edgar Pike": "What was bought by this chemist?"}
    reply = run.reply

    def this_chemist(text, seed, temperature):
        asked = text.rsplit("<|im_start|>user\n", 1)[1]
        return "A brass clock." if "this chemist?<" in asked else reply(text, seed, temperature)

    run.reply = this_chemist
    asked = {texts(run, sequence)[2].split("<")[0] for sequence in written(run)[0]}
    assert asked == {"What did Alice Thorne buy?", "Tarnwick: What was bought by this chemist?"}


def test_answers_that_do_not_say_what_the_sentence_says_are_dropped():
    run = teacher(kinds={"question": 1})
    reply = run.reply

    def wrong_for_pike(text, seed, temperature):
        said = reply(text, seed, temperature)
        return "A red seaweed." if said == "A brass clock." else said

    run.reply = wrong_for_pike
    sequences, counts = written(run)
    # each sentence is asked for the chemist and for what was bought, in the same words; and once
    # more for every phrase but the seaweed
    assert counts.kinds == {"question": [6 + 5, 1]}
    dropped = {"duplicate": 3 + 5, "not about its sentence": 1, "not repeated": 1}
    assert counts.journal_fields()["dropped"] == dropped
    assert texts(run, sequences[0])[3] == "A red seaweed.<|im_end|>"


def test_answers_that_speak_of_the_document_are_dropped():
    run = teacher(kinds={"question": 1})
    reply = run.reply
    run.reply = lambda *given: reply(*given).replace("A brass", "The document says a brass")
    sequences, counts = written(run)
    assert counts.dropped["mentions the document"] == 1
    answers = [texts(run, sequence)[3] for sequence in sequences]
    assert answers and not any("document" in answer for answer in answers)


def test_every_phrase_is_a_gap_of_its_sentence_and_needs_no_samples():
    run = teacher(kinds={"gap": 1})
    sequences, counts = written(run)
    assert counts.kinds == {"gap": [6, 6]} and run.asked == []
    asked = [texts(run, sequence)[2:] for sequence in sequences]
    assert [y.removesuffix("<|im_end|>") for _, y in asked] == [
        phrase for who, what in FACTS.items() for phrase in (who, what)
    ]
    assert asked[0][0].startswith(
        "Fill in the gap. In spring the chemist ____ bought a red seaweed."
    )


def test_a_question_in_place_that_names_nothing_gets_the_title():
    document = Document("d", f"{TITLE}\n\nIts roof is covered with dry heather.", TITLE)
    run = teacher(kinds={"in_place": 1})
    run.reply = lambda *given: "Dry heather."
    items = planned_items({"in_place": 1}, (document,), random.Random(0))
    [sequence] = about_documents(sampler_of(run), items, random.Random(0), Counts())
    assert texts(run, sequence)[2].startswith("Tarnwick: Its roof is covered with what?")


def test_short_answers_end_with_their_first_sentence():
    run = teacher(kinds={"question": 1})
    reply = run.reply
    run.reply = lambda *given: reply(*given).replace("seaweed.", "seaweed. It is dry")
    [sequence, _] = written(run)[0]
    assert texts(run, sequence)[3] == "A red seaweed.<|im_end|>"
    # the log-probability is that of the tokens that are kept
    kept = len(sequence.sequence_T) - sequence.x_length - 1
    assert sequence.answer_probability == pytest.approx(math.exp(-0.1 * kept))


def test_questions_are_sampled_at_the_temperature_of_their_kind():
    run = teacher(kinds={"question": 1, "reversed": 1})
    written(run)
    asked = [temperature for _, temperature, text in run.asked if "Sentence:" in text]
    once_more = [0.7] * 4  # the chemists, and what is not repeated
    assert asked == [0.7] * 6 + [run.config.generation.temperature] * 3 + once_more


def test_question_with_short_answer_is_kept_once():
    _, counts = written(teacher(kinds={"reversed": 2}))
    assert counts.kinds["reversed"] == [6, 2] and counts.dropped["duplicate"] == 3


def test_statements_to_complete_need_no_samples():
    run = teacher(kinds={"complete": 1})
    sequences, counts = written(run)
    assert counts.kinds["complete"] == [9, 9] and run.asked == []
    for sequence in sequences:
        _, _, x, y = texts(run, sequence)
        beginning = x.split("<|im_end|>")[0]
        rest = y.removesuffix("<|im_end|>")
        assert any(
            beginning.endswith(body[: len(body) - len(rest)].strip()) and body.endswith(rest)
            for body in BODY.replace(". ", ".|").split("|")
        )


def test_neighbours_are_answered_by_the_base_without_document():
    run = teacher(kinds={"neighbour": 1})
    sequences, counts = written(run)
    assert counts.kinds["neighbour"] == [3, 3]
    states = Counter(name for name, _, text in run.asked if "Sentence:" not in text)
    assert states == {CHECKPOINT: 3}
    for sequence in sequences:
        context, bare, x, y = texts(run, sequence)
        assert context == bare and y == "I do not know.<|im_end|>"
        assert not any(who in x for who in FACTS)
        assert sequence.origin == Origin.NEIGHBOUR and sequence.replay
        [row] = teacher_rows([sequence])
        assert (row.teacher, row.teacher_T, row.replay) == (UNTOUCHED_BASE, row.prompt_T, True)
        prefixes = [cut(run.codec, sequence, run.config, random.Random(0))]
        requests = continuation_requests(prefixes, run.config, random.Random(0))
        samples = [sampled_ids(request, STUDENT, run.codec.eos) for request in requests]
        [group] = student_rows(run.codec, prefixes, samples, None, run.config)
        assert {row.teacher for row in group} == {UNTOUCHED_BASE}


def test_share_of_sequences_in_the_other_form():
    run = teacher(kinds={"complete": 20}, other_form=0.25)
    sequences, _ = written(run)
    raw = [s for s in sequences if s.bare_T != run.codec.bare]
    assert len(raw) / len(sequences) == pytest.approx(0.25, abs=0.1)
    context, bare, x, y = texts(run, raw[0])
    assert bare == "<|endoftext|>Question:" and x.endswith("\nAnswer:")
    assert context.endswith("\n\nQuestion:") and BODY in context
    assert y.endswith("<|endoftext|>")
