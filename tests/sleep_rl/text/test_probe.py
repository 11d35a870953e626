"""Probe texts round-trip in every form; others give one-line errors."""

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.probe import check_round_trip
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import TEMPLATES, chat_tokenizer


@pytest.mark.parametrize("format", ["chat", "raw"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_probe_texts_round_trip(format, template):
    # raises if a text does not round-trip, as the tests below show
    check_round_trip(PromptCodec(Natural(), chat_tokenizer(TEMPLATES[template]), format))


def test_form_without_answer_gives_one_line_error(monkeypatch):
    codec = PromptCodec(Natural(), chat_tokenizer(), "chat")
    monkeypatch.setattr(codec.form, "marker", (1, 2, 3, 4))
    with pytest.raises(InputError, match=r"model\.format chat: the probe text .* no answer"):
        check_round_trip(codec)


def test_lossy_tokenizer_gives_one_line_error(monkeypatch):
    codec = PromptCodec(Natural(), chat_tokenizer(), "raw")
    plain = codec.tokens.text
    monkeypatch.setattr(
        codec.tokens, "text", lambda ids, special=False: plain(ids, special=special).lower()
    )
    with pytest.raises(
        InputError, match=r"model\.format raw: .* expected the answer 'Anna Berg\.'"
    ):
        check_round_trip(codec)


def test_an_answer_without_an_end_gives_one_line_error(monkeypatch):
    codec = PromptCodec(Natural(), chat_tokenizer(), "raw")
    monkeypatch.setattr(codec, "complete", lambda answer_T: None)
    with pytest.raises(InputError, match=r"expected an answer that has ended, got one without"):
        check_round_trip(codec)


def test_a_changed_document_gives_one_line_error(monkeypatch):
    codec = PromptCodec(Natural(), chat_tokenizer(), "raw")
    context = codec.context
    monkeypatch.setattr(codec, "context", lambda document, style: context(None))
    with pytest.raises(InputError, match=r"expected the document in front of the question, got"):
        check_round_trip(codec)
