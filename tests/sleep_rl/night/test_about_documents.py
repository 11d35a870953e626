"""D ~ T in natural language, with a scripted teacher on real token ids."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import (
    CHECKPOINT,
    STUDENT,
    TEACHER,
    UNTOUCHED_BASE,
    Document,
)
from sleep_rl.night.about_documents import about_documents
from sleep_rl.night.continuations import continuation_requests, cut, student_rows
from sleep_rl.night.items import Counts, Item, planned_items
from sleep_rl.night.natural import INTERROGATIVES, self_replay
from sleep_rl.night.phrase_answers import MOST_CANDIDATES, answered_by_phrase
from sleep_rl.night.rehearsal import rehearsal_requests, rehearse_with_cuts
from sleep_rl.night.rows import teacher_rows
from sleep_rl.night.sequences import Origin
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.kinds import load_kind
from sleep_rl.writing.units import units
from tests.fakes.configs import changed
from tests.fakes.crew import sampled_ids
from tests.fakes.natural_teacher import (
    BODY,
    DOCUMENT,
    FACTS,
    TITLE,
    NaturalTeacher,
    sampler_of,
    teacher,
    texts,
    written,
)
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import chat_tokenizer


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
    """ "The old mill of Orme": in its place a question may have no sense."""
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


def test_a_question_of_fixed_words_is_answered_by_its_phrase_without_a_choice():
    run = teacher(kinds={"in_place": 1})
    run.reply = lambda *given: "I do not know."
    sequences, counts = written(run)
    answers = [texts(run, sequence)[3].removesuffix("<|im_end|>") for sequence in sequences]
    assert answers == [phrase for pair in FACTS.items() for phrase in pair]
    assert counts.kinds == {"in_place": [6, 6]}
    assert counts.journal_fields()["by_phrase"] == {"in_place": 6}


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


def test_a_question_in_place_that_names_nothing_gets_the_title():
    document = Document("d", f"{TITLE}\n\nIts roof is covered with dry heather.", TITLE)
    run = teacher(kinds={"in_place": 1})
    run.reply = lambda *given: "Dry heather."
    items = planned_items({"in_place": 1}, (document,), random.Random(0))
    [sequence] = about_documents(sampler_of(run), items, random.Random(0), Counts())
    assert texts(run, sequence)[2].startswith("Tarnwick: Its roof is covered with what?")


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


def test_phrases_that_many_sentences_have_are_not_asked_for():
    body = " ".join(f"The roof of Tarnwick House has {n} windows." for n in range(11, 16))
    items = planned_items({"gap": 1}, [Document("d", body)], random.Random(0))
    assert [item.unit.rest for item in items] == [f"{n} windows" for n in range(11, 16)]
    few = " ".join(body.split(". ")[:3])
    items = planned_items({"gap": 1}, [Document("d", few)], random.Random(0))
    assert "Tarnwick House" in {item.unit.rest for item in items}


def test_rehearsed_answers_that_run_on_are_cut_behind_their_last_sentence():
    run = teacher(rehearsal={"min_confidence": 0.05, "temperature": 0.5})
    form = run.codec.form
    prompts = [form.question(f"What did {who} buy?") for who in (*FACTS, "nobody")]
    replies = iter(("A red seaweed.", "A brass clock. It", "it has no", Failure("rollout", "gone")))
    ended = iter((True, False, False, None))
    counts = Counts()
    sample = run.sampled

    def scripted(request, name, temperature):
        reply = next(replies)
        run.reply = lambda *given: reply
        sampled = sample(request, name, temperature)
        if next(ended) is False:
            return replace(
                sampled,
                completion_T=sampled.completion_T[:-1],
                logprobs_T=sampled.logprobs_T[:-1],
                finish_reason="length",
            )
        return sampled

    run.sampled = scripted
    sampler = sampler_of(run)
    requests = rehearsal_requests(run.codec, prompts, random.Random(0))
    sequences = rehearse_with_cuts(sampler, requests, counts)
    assert [texts(run, s)[3] for s in sequences] == [
        "A red seaweed.<|im_end|>",
        "A brass clock.<|im_end|>",
    ]
    assert [s.prompt_T for s in sequences] == prompts[:2]
    assert {s.temperature for s in sequences} == {0.5} and sequences[0].origin == Origin.REHEARSED
    assert sequences[0].context_T == sequences[0].bare_T == run.codec.bare
    kept = len(sequences[1].sequence_T) - sequences[1].x_length - 1
    assert sequences[1].answer_probability == pytest.approx(math.exp(-0.1 * kept))
    assert counts.journal_fields()["dropped"] == {"no end": 1, "failed": 1}


def test_rehearsed_answers_with_low_confidence_are_dropped():
    """Answers have log-probability -0.1 per token, so that longer ones are less probable."""
    counts = Counts()
    run = teacher()
    answers = ("A clock.", "It is a very old brass clock.")
    tokens = len(run.codec.tokens.plain_ids(answers[0]))
    run.config = changed(run.config, rehearsal={"min_confidence": math.exp(-0.1 * tokens - 0.05)})
    replies = iter(answers)
    run.reply = lambda *given: next(replies)
    form = run.codec.form
    prompts = [form.question(f"What did {who} buy?") for who in ("Edgar Pike", "Ruth Abel")]
    requests = rehearsal_requests(run.codec, prompts, random.Random(0))
    [sequence] = rehearse_with_cuts(sampler_of(run), requests, counts)
    assert texts(run, sequence)[3] == "A clock.<|im_end|>"
    assert counts.journal_fields()["dropped"] == {"unsure": 1}


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


def test_answers_without_gain_are_dropped():
    run = teacher(knows=("seaweed",), kinds={"reversed": 1})
    sequences, counts = written(run)
    assert counts.dropped["no gain"] == 1 and len(sequences) == 1
    run = teacher(knows=("seaweed",), kinds={"reversed": 1}, min_gain=-1.0)
    assert len(written(run)[0]) == 2


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


def test_self_replay_of_a_chat_model_begins_at_the_bare_header():
    run = teacher()
    sequences = self_replay(sampler_of(run), 15, random.Random(0), Counts())
    openings = []
    for sequence in sequences:
        context, bare, x, y = texts(run, sequence)
        assert context == bare == "<|im_start|>user\n"
        found = re.fullmatch(r"(\w*)How is day \d\?<\|im_end\|>\n<\|im_start\|>assistant\n", x)
        openings.append(found[1])
        assert sequence.x_length == len(sequence.sequence_T) - len(run.codec.tokens.ids(y))
        assert y == "I do not know.<|im_end|>"
    assert {name for name, _, _ in run.asked} == {TEACHER}
    # every second one begins with an interrogative, each in turn
    assert openings[::2] == [""] * 8
    assert openings[1::2] == [*INTERROGATIVES, INTERROGATIVES[0]]


def test_self_replay_of_a_base_model_is_plain_text():
    codec = PromptCodec(Natural(), chat_tokenizer(), "raw")
    run = NaturalTeacher(codec, Config())
    run.reply = lambda text, seed, temperature: f"Day {seed} was long."
    [sequence] = self_replay(sampler_of(run), 1, random.Random(0), Counts())
    assert texts(run, sequence)[:3] == ["<|endoftext|>", "<|endoftext|>", ""]
    assert sequence.x_length == 0


def test_failed_samples_are_counted_as_failed_and_not_as_answers():
    """A failed second sample does not say that the teacher answers otherwise."""
    run = teacher(kinds={"reversed": 1})
    reply = run.reply

    def failing(text, seed, temperature):
        second = temperature > 0 and "Document:" in text and "Sentence:" not in text
        return Failure("engine died") if second else reply(text, seed, temperature)

    run.reply = failing
    sequences, counts = written(run)
    assert sequences == [] and counts.journal_fields()["dropped"] == {"failed": 3}
    codec = PromptCodec(Natural(), chat_tokenizer(), "raw")
    base = NaturalTeacher(codec, Config())
    base.reply = lambda text, seed, temperature: Failure("engine died")
    counts = Counts()
    assert self_replay(sampler_of(base), 4, random.Random(0), counts) == []
    assert counts.dropped == {"failed": 4}
