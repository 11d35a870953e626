"""Self-replay in natural language, with a scripted teacher on real token ids."""

from __future__ import annotations

import random
import re

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER
from sleep_rl.night.items import Counts
from sleep_rl.night.natural import INTERROGATIVES, self_replay
from sleep_rl.text.codec import PromptCodec
from tests.fakes.natural_teacher import NaturalTeacher, sampler_of, teacher, texts
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import chat_tokenizer


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


def test_failed_samples_of_self_replay_are_counted():
    codec = PromptCodec(Natural(), chat_tokenizer(), "raw")
    base = NaturalTeacher(codec, Config())
    base.reply = lambda text, seed, temperature: Failure("engine died")
    counts = Counts()
    assert self_replay(sampler_of(base), 4, random.Random(0), counts) == []
    assert counts.dropped == {"failed": 4}
