"""The plan of a task in natural language: text probe, lengths of a night, its time."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError
from sleep_rl.plan import night_tokens
from sleep_rl.plan.plan import plan
from sleep_rl.plan.sizes import night_seconds
from tests.fakes.configs import changed
from tests.fakes.small_shape import SMALL, SMALL_ARGS
from tests.fakes.tokenizers import chat_tokenizer

ROOT = Path(__file__).parents[3]
DOCUMENT = "# The mill\n\nThe old mill of Orme was built in 1931 by Ruth Abel.\n"
FLOPS = {"read": 60e9, "write": 18e9}  # of a small model on a thread
pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture
def planned(tmp_path):
    """Return a function that plans task documents on one document with a small base of its own."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "mill.md").write_text(DOCUMENT)
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").touch()
    (base / "config.json").write_text(
        json.dumps({**SMALL, "vocab_size": 700, "max_position_embeddings": 512})
    )

    def make(*overrides, tokenizer=None, kinds=None):
        if tokenizer:
            tokenizer.save_pretrained(base)
        args = (*SMALL_ARGS, "rollouts.engine.max_model_len=512")
        args += ("rollouts.engine.kv_cache_memory_bytes=64000", f"model.base={base}")
        args += ("model.memory_layers=all", f"task.documents.path={tmp_path / 'documents'}")
        config = load(str(ROOT / "configs/documents.yaml"), [*args, *overrides])
        return plan(changed(config, generation={"kinds": kinds or {"reversed": 1}}))

    return make


def test_a_plan_writes_the_probe_texts_with_the_tokenizer_of_the_base(planned):
    assert not any("text probe" in note for note in planned(tokenizer=chat_tokenizer()).notes)
    raw = planned("model.format=raw", tokenizer=chat_tokenizer())
    assert not any("text probe" in note for note in raw.notes)


def test_a_plan_refuses_texts_that_cannot_be_parsed_back(planned, tmp_path):
    """A tokenizer that changes every text: it is cased down before it is split."""
    from tokenizers import normalizers

    tokenizer = chat_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=r"^model\.format chat: the probe text .*round-trip") as e:
        planned(tokenizer=tokenizer)
    assert "\n" not in str(e.value)
    assert AutoTokenizer.from_pretrained(tmp_path / "base")("A")["input_ids"]


def test_a_plan_without_a_tokenizer_says_so_in_one_line(planned):
    for base, why in (("", "got none"), ("model.base=Qwen/Qwen3-1.7B", "switched off")):
        args = [base, "model.dtype=bfloat16", "rollouts.engine.kv_cache_memory_bytes=99999999"]
        [note] = [n for n in planned(*filter(None, args)).notes if "text probe" in n]
        assert note.startswith("the text probe was not made with the tokenizer of ")
        assert why in note and "\n" not in note


def test_tokens_of_a_night_on_one_sentence(planned):
    """A word is 1.5 tokens; a question takes a third of its 48 tokens."""
    p = planned(
        "objective.on_policy=0",
        "replay.share=0",
        "sleep.steps=10",
        "sleep.batch=4",
        "rollouts.cpus=1",
        tokenizer=chat_tokenizer(),
        kinds={"reversed": 2, "rephrase": 1},
    )
    assert (p.written, p.without_document, p.completions) == (3, 0, 0)
    document = 1.5 * (2 + 12)  # title and sentence
    fixed = 1.5 * 9  # Tell me about "The mill" in your own words.
    question = 48 / 3
    answer = 32
    long = 96
    row = (2 * (question + answer + 8) + fixed + long + 8) / 3
    assert p.work.row == pytest.approx(row)
    assert p.work.written == pytest.approx(2 * (question + 0.9 * answer) + long)
    assert p.work.trained == pytest.approx(10 * 4 * row)
    assert p.work.taught == pytest.approx(document + 3 * row)  # each sequence once
    fields = 1.5 * (2 + 12 - 2)  # each of the two replaces a word of the instruction
    read = 2 * (fields + 0.9 * question + 1.2 * (question + answer)) + fixed + 2 * (fixed + long)
    assert p.work.read == pytest.approx(3 * document + read)
    parameters = p.base.parameters
    learned = (4 * p.work.trained + 2 * p.work.taught) / (2 * FLOPS["read"])
    sampled = 2 * p.work.read / FLOPS["read"] + 2 * p.work.written / FLOPS["write"]
    assert p.seconds == pytest.approx(parameters * (learned + sampled))
    again = night_seconds(p.config, p.base, p.work)
    assert again == p.seconds


def test_a_fifth_of_the_questions_about_phrases_are_written_once_more(planned):
    """Those that no model writes are the same again, and not counted."""
    written, in_place = (
        planned(tokenizer=chat_tokenizer(), kinds={kind: 5}).written
        for kind in ("question", "in_place")
    )
    assert 0 < 6 * in_place == 5 * written


def test_phrases_among_which_the_teacher_chooses_are_read(planned, monkeypatch):
    """Names, a number and a noun phrase: Orme, Ruth Abel, 1931, old mill."""

    def read():
        return planned(tokenizer=chat_tokenizer(), kinds={"question": 1}).work.read

    with_choices = read()
    monkeypatch.setattr(night_tokens, "CHOSEN", 0.0)
    without_choices = read()
    question = 48 / 3
    phrases = 1.5 * 6  # words of the four phrases
    asked = 4 + 1  # one of them, of one or two words, once more
    more = with_choices - without_choices
    low, high = (0.3 * 0.6 * 5 * (asked * question + phrases + 1.5 * n) for n in (1, 2))
    assert any(more == pytest.approx(bound) for bound in (low, high))


def test_off_policy_steps_have_no_completions(planned):
    args = ("sleep.steps=40", "sleep.batch=16", "objective.on_policy=0.5", "replay.share=0.5")
    counts = [
        planned(*args, f"objective.off_policy_first={share}").completions for share in (0, 0.25)
    ]
    assert counts == [40 * 8, 30 * 8]


def test_the_night_of_the_demo_is_estimated_within_a_factor_of_two(monkeypatch):
    """Measured with SmolLM2-135M on two threads: rows of 60 tokens, 350 learned per second; on one
    140 written and 500 read.
    """
    monkeypatch.chdir(ROOT)
    p = plan(load("configs/documents.yaml", ["task.documents.path=configs/example/day1"]))
    sleep = p.config.sleep
    learned_s = sleep.steps * sleep.batch * 60 / 350
    estimate_s = p.base.parameters * (4 * p.work.trained + 2 * p.work.taught) / (2 * 105e9)
    assert learned_s / 2 < estimate_s < 2 * learned_s
    assert 60 / 2 < p.work.row < 60 * 2
    measured_s = learned_s + p.work.written / 140 + p.work.read / 500
    assert measured_s / 2 < p.seconds < 2 * measured_s
    assert p.seconds < 3600  # a night of minutes, not of hours
