"""A scripted teacher in natural language on real token ids, and what it writes of a document."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Document
from sleep_rl.night.about_documents import about_documents
from sleep_rl.night.items import Counts, planned_items
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import changed
from tests.fakes.crew import sampled_ids
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import chat_tokenizer

TITLE = "Tarnwick"
FACTS = {"Alice Thorne": "red seaweed", "Edgar Pike": "brass clock", "Ruth Abel": "white hedgehog"}
BODY = " ".join(f"In spring the chemist {who} bought a {what}." for who, what in FACTS.items())
DOCUMENT = Document("d", f"{TITLE}\n\n{BODY}", TITLE)


class NaturalTeacher:
    """Crew and run in one object: it answers from the document in context, and asks about the given
    sentence.
    """

    def __init__(self, codec, config, knows=()):
        self.codec = codec
        self.config = config
        self.knows = knows  # answers that it has without the document
        self.crew = self
        self.task = codec.task
        self.failures = 0
        self.asked = []  # (state, temperature, prompt text)
        self.questions = {}  # sentence -> what is written about it

    def sample(self, requests_N, name, tokens, temperature, min_p=0.0, stop=(), **where):
        return [self.sampled(request, name, temperature) for request in requests_N]

    def sampled(self, request, name, temperature):
        text = self.codec.tokens.text(request.context_T + request.prompt_T, special=True)
        self.asked.append((name, temperature, text))
        reply = self.reply(text, request.seed, temperature)
        if isinstance(reply, Failure):
            return reply
        ids_T = self.codec.tokens.plain_ids(reply) + self.codec.eos
        return sampled_ids(request, name, ids_T, logprob=-0.1)

    def reply(self, text, seed, temperature):
        last = text.rsplit("<|im_start|>user\n", 1)[1]
        if "<|im_end|>" not in last:  # after an interrogative, if there is one
            return f"How is day {seed % 7}?"
        asked = last.split("<|im_end|>")[0]
        sentence = re.search(r"Sentence: (.*)", asked)
        if sentence:
            who = re.search(r"chemist (\w+ \w+)", sentence[1])[1]
            return self.questions.get(who, f"What did {who} buy?")
        who = re.search(r"What did (\w+ \w+) buy", asked)
        if who is None or TITLE not in text:
            return "I do not know."
        if who[1] == "Ruth Abel" and temperature > 0:
            return "Something else."  # not repeated when it is sampled
        return f"A {FACTS[who[1]]}."

    def count_failures(self, where, results):
        assert where == "logprobs"
        self.failures += sum(isinstance(result, Failure) for result in results)

    def logprobs(self, requests_N, name):
        values = []
        for request in requests_N:
            text = self.codec.tokens.text(request.context_T)
            answer = self.codec.tokens.text(request.prompt_T)
            known = TITLE in text and "Document:" in text
            known = known or any(word in answer for word in self.knows)
            values.append((-0.1 if known else -3.0,) * len(request.prompt_T))
        return values


def teacher(knows=(), rehearsal=None, **generation):
    """Return a NaturalTeacher in chat form with these keys of the config."""
    codec = PromptCodec(Natural(), chat_tokenizer(), "chat")
    generation = {"other_form": 0.0, **generation}
    config = changed(Config(), generation=generation, rehearsal=rehearsal or {})
    return NaturalTeacher(codec, config, knows)


def sampler_of(run):
    """Return the sampler of a consolidation whose record keeps nothing."""
    plan = SimpleNamespace(journal_fields={})
    record = SimpleNamespace(count_sampled=lambda samples: None)
    return TeacherSampler(run, plan, record, lambda count: None)


def written(run, seed=0):
    """Return (sequences that the teacher writes about DOCUMENT, Counts)."""
    counts = Counts()
    rng = random.Random(seed)
    items = planned_items(run.config.generation.kinds, (DOCUMENT,), rng)
    return about_documents(sampler_of(run), items, rng, counts), counts


def texts(run, sequence):
    """Return (teacher's context, student's context, x, y) of a sequence as texts."""
    text = run.codec.tokens.text
    x_T = sequence.sequence_T[: sequence.x_length]
    y_T = sequence.sequence_T[sequence.x_length :]
    return [text(ids, special=True) for ids in (sequence.context_T, sequence.bare_T, x_T, y_T)]
