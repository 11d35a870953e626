"""Check that probe texts round-trip through a form, before a run depends on it."""

from __future__ import annotations

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document
from sleep_rl.text.answer_style import SENTENCE
from sleep_rl.text.codec import TOKEN, PromptCodec

PROBES = (
    ("Who keeps the key of the old mill?", "Anna Berg."),
    ('What does the sign say about "rules (and fees)"?', "Closed on Mondays, 14:30 to 15:00"),
    ("How much is 3.5 % of 2,000?\n", "70 – seventy"),
)
"""(question, answer), with question mark, quotation marks and brackets, line break and dash."""


def check_round_trip(codec: PromptCodec) -> None:
    """Raise InputError if question and answer of a probe text cannot be separated again, or its
    document is not unchanged in the context.
    """
    for question, answer in PROBES:
        sequence_T = codec.form.question(question) + codec.form.answer(answer) + codec.eos
        parts = codec.split(sequence_T)
        if parts is None or _words(codec, parts[1]) != answer:
            got = "no answer" if parts is None else repr(_words(codec, parts[1]))
            raise _refusal(codec, f"{question} {answer}", f"the answer {answer!r}", got)
        if codec.complete(parts[1]) != (parts[1][:-1], TOKEN):
            raise _refusal(codec, answer, "an answer that has ended", "one without an end")
        document = f"{question.strip()} {answer}"
        for style in (SENTENCE, codec.style):
            context_T = codec.context(Document("probe", document), style)
            read = codec.tokens.text(context_T, special=True)
            if document not in read:
                raise _refusal(codec, document, "the document in front of the question", repr(read))


def _words(codec: PromptCodec, ids: tuple[int, ...]) -> str:
    return codec.text(ids).strip()


def _refusal(codec: PromptCodec, text: str, expected: str, got: str) -> InputError:
    return InputError(
        f"model.format {codec.form.name}: the probe text {text!r} does not round-trip through the "
        f"tokenizer: expected {expected}, got {got}; allowed are auto, chat and raw"
    )
